// The two products of decode attention with rows of the cache, as they lie there: scores = query . K rows and
// values = weights . V rows. A lane holds 16 bytes of a row, its piece; the lanes of a row are neighbours.
//
// A format says how: its Element as stored, its Query piece, the dot product of a query piece with a row
// piece, the weight of a V row and the weighted sum of pieces.
#pragma once

#include <bit>
#include <cfloat>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device/number.h"
#include "kernels/cuda/device/warp.h"
#include "kernels/cuda/quantise_row.h"
#include "kernels/cuda/vectors.h"

namespace kvfuse::cuda {

// Rows that a lane has in flight at once: enough loads to cover the latency, and as many lanes at least hold
// a row, so that each can take the softmax of one of its row's neighbours.
inline constexpr int kTokens = 4;

template <class Format, int kHeadDim>
struct RowLayout {
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(typename Format::Element));
  static constexpr int kPieces = kRowBytes / 16;
  // Lanes of a row: a power of two, for the reductions. Lanes past kPieces hold zeros.
  static constexpr int kLanes = static_cast<int>(std::bit_ceil(static_cast<unsigned>(kPieces)));
  static constexpr int kGroups = 32 / kLanes;           // rows that a warp's load covers
  static constexpr int kStep = kGroups * kTokens;       // rows that a warp has in flight
  static constexpr int kElements = kHeadDim / kPieces;  // of a piece
  static_assert(kRowBytes % 16 == 0 && kLanes >= kTokens && kLanes <= 32);
};

// The scale of a query in 16 bits: 127 * 256 + 127 is the most that two signed bytes give.
inline constexpr float kLargestQuery = 32639.0F;

// int8 codes with integer products: the query is rounded to 16 bits, kept as two planes of bytes (256 * high
// + low, low signed too), so that two dp4a make four products, exact in 32 bits up to head size 512.
struct IntegerCodes {
  using Element = std::int8_t;
  using Score = int;
  using Weight = std::uint32_t;  // a half, twice
  static constexpr bool kScaled = true;

  struct Query {
    std::uint32_t high[4];
    std::uint32_t low[4];
  };

  // Writes this lane's part of a query into the row's pieces; returns what a score is to be multiplied by.
  static KVFUSE_DEVICE float store_query(const RowPart& part, Query* pieces, bool inside) {
    int largest = 0;
    KVFUSE_UNROLL
    for (float x : part.x) largest = maximum(largest, magnitude_bits(x));
    const float scale = scale_of_magnitude(group_max<32>(largest)) * (127.0F / kLargestQuery);
    const float inverse =
        scale >= FLT_MIN ? 1.0F / scale : 0.0F;  // NaN: zeros, and the scale spoils the scores
    int high[kPartWidth], low[kPartWidth];
    KVFUSE_UNROLL
    for (int i = 0; i < kPartWidth; ++i) {
      const int value = round_to_int(part.x[i] * inverse);
      high[i] = (value + 128) >> 8;
      low[i] = value - 256 * high[i];
    }
    const int word = lane_id() % 4;
    if (inside) pieces[lane_id() / 4].high[word] = pack_codes(high[0], high[1], high[2], high[3]);
    if (inside) pieces[lane_id() / 4].low[word] = pack_codes(low[0], low[1], low[2], low[3]);
    return scale;
  }

  static KVFUSE_DEVICE int dot(const Query& q, const uint4& k) {
    const std::uint32_t codes[4] = {k.x, k.y, k.z, k.w};
    int sum = 0;
    KVFUSE_UNROLL
    for (int i = 0; i < 4; ++i) sum = dp4a(static_cast<int>(q.high[i]), static_cast<int>(codes[i]), sum);
    sum *= 256;
    KVFUSE_UNROLL
    for (int i = 0; i < 4; ++i) sum = dp4a(static_cast<int>(q.low[i]), static_cast<int>(codes[i]), sum);
    return sum;
  }

  // This lane's share of the dot product with a row in the hands of a warp.
  static KVFUSE_DEVICE int dot_part(const Query* pieces, const NewRow& row) {
    const Query& q = pieces[lane_id() / 4];
    const int codes = static_cast<int>(row.codes);
    return dp4a(static_cast<int>(q.low[lane_id() % 4]), codes,
                dp4a(static_cast<int>(q.high[lane_id() % 4]), codes, 0) * 256);
  }

  static KVFUSE_DEVICE Weight weight(float w) { return half2_splat(w); }

  // Adds the weighted codes of kTokens rows. Products and sums of one call are halves: weights are at most 1
  // and 4 * 127 is far from their largest value.
  template <int kRows>
  static KVFUSE_DEVICE void accumulate(const uint4 (&v)[kTokens], const Weight (&weights)[kRows][kTokens],
                                       float (&values)[kRows][16]) {
    KVFUSE_UNROLL
    for (int word = 0; word < 4; ++word) {
      uint2 x[kTokens];
      KVFUSE_UNROLL
      for (int token = 0; token < kTokens; ++token) {
        const std::uint32_t codes[4] = {v[token].x, v[token].y, v[token].z, v[token].w};
        x[token] = codes_to_half2(codes[word]);
      }
      KVFUSE_UNROLL
      for (int row = 0; row < kRows; ++row) {
        std::uint32_t even = half2_mul(x[0].x, weights[row][0]);
        std::uint32_t odd = half2_mul(x[0].y, weights[row][0]);
        KVFUSE_UNROLL
        for (int token = 1; token < kTokens; ++token) {
          even = half2_fma(x[token].x, weights[row][token], even);
          odd = half2_fma(x[token].y, weights[row][token], odd);
        }
        values[row][4 * word] += half2_low(even);
        values[row][4 * word + 1] += half2_high(even);
        values[row][4 * word + 2] += half2_low(odd);
        values[row][4 * word + 3] += half2_high(odd);
      }
    }
  }
};

// A query piece in float32, for formats that multiply in float32.
template <int kElements>
struct FloatQuery {
  float x[kElements];

  static KVFUSE_DEVICE float store(const RowPart& part, FloatQuery* pieces, bool inside) {
    constexpr int kParts = kElements / kPartWidth;
    KVFUSE_UNROLL
    for (int i = 0; i < kPartWidth; ++i)
      if (inside) pieces[lane_id() / kParts].x[lane_id() % kParts * kPartWidth + i] = part.x[i];
    return 1.0F;
  }

  static KVFUSE_DEVICE float dot_part(const FloatQuery* pieces, const NewRow& row) {
    constexpr int kParts = kElements / kPartWidth;
    float sum = 0.0F;
    KVFUSE_UNROLL
    for (int i = 0; i < kPartWidth; ++i)
      sum += pieces[lane_id() / kParts].x[lane_id() % kParts * kPartWidth + i] * row.values.x[i];
    return sum;
  }
};

// int8 codes with the query in float32: what the error of IntegerCodes is measured against.
struct FloatQueryCodes : IntegerCodes {
  using Score = float;
  using Query = FloatQuery<16>;

  static KVFUSE_DEVICE float store_query(const RowPart& part, Query* pieces, bool inside) {
    return Query::store(part, pieces, inside);
  }

  static KVFUSE_DEVICE float dot_part(const Query* pieces, const NewRow& row) {
    return Query::dot_part(pieces, row);
  }

  static KVFUSE_DEVICE float dot(const Query& q, const uint4& k) {
    const std::uint32_t codes[4] = {k.x, k.y, k.z, k.w};
    float sum = 0.0F;
    KVFUSE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint2 x = codes_to_half2(codes[i]);
      sum += q.x[4 * i] * half2_low(x.x) + q.x[4 * i + 1] * half2_high(x.x) +
             q.x[4 * i + 2] * half2_low(x.y) + q.x[4 * i + 3] * half2_high(x.y);
    }
    return sum;
  }
};

// A cache of T, multiplied and summed in float32.
template <class T>
struct Floats {
  using Element = T;
  using Score = float;
  using Weight = float;
  static constexpr bool kScaled = false;
  static constexpr int kElements = kVectorElements<T>;
  using Query = FloatQuery<kElements>;

  static KVFUSE_DEVICE float store_query(const RowPart& part, Query* pieces, bool inside) {
    return Query::store(part, pieces, inside);
  }

  static KVFUSE_DEVICE float dot_part(const Query* pieces, const NewRow& row) {
    return Query::dot_part(pieces, row);
  }

  static KVFUSE_DEVICE float dot(const Query& q, const uint4& k) {
    float x[kElements];
    unpack<T>(k, x);
    float sum = 0.0F;
    KVFUSE_UNROLL
    for (int i = 0; i < kElements; ++i) sum += q.x[i] * x[i];
    return sum;
  }

  static KVFUSE_DEVICE Weight weight(float w) { return w; }

  // A row of weight 0 may be one that this query does not see: it must not matter even if it is not finite.
  template <int kRows>
  static KVFUSE_DEVICE void accumulate(const uint4 (&v)[kTokens], const Weight (&weights)[kRows][kTokens],
                                       float (&values)[kRows][kElements]) {
    KVFUSE_UNROLL
    for (int token = 0; token < kTokens; ++token) {
      float x[kElements];
      unpack<T>(v[token], x);
      KVFUSE_UNROLL
      for (int row = 0; row < kRows; ++row) {
        if (weights[row][token] == 0.0F) continue;
        KVFUSE_UNROLL
        for (int i = 0; i < kElements; ++i) values[row][i] += weights[row][token] * x[i];
      }
    }
  }
};

// Adds up the parts that a row's lanes hold of kTokens scores. A lane gets the sum of token lane % kTokens:
// with as few shuffles as there are tokens, and each softmax taken once.
template <int kLanes, class Score>
KVFUSE_DEVICE Score sum_own_token(const Score (&parts)[kTokens]) {
  static_assert(kTokens == 4);
  const bool upper = (lane_id() & 2) != 0;
  const bool odd = (lane_id() & 1) != 0;
  const Score even_token = (upper ? parts[2] : parts[0]) + shuffle_xor(upper ? parts[0] : parts[2], 2);
  const Score odd_token = (upper ? parts[3] : parts[1]) + shuffle_xor(upper ? parts[1] : parts[3], 2);
  Score own = (odd ? odd_token : even_token) + shuffle_xor(odd ? even_token : odd_token, 1);
  KVFUSE_UNROLL
  for (int mask = kTokens; mask < kLanes; mask *= 2) own += shuffle_xor(own, mask);
  return own;
}

}  // namespace kvfuse::cuda
