// The inner loop of decode attention: a warp walks over the cached tokens of its block's split.
#pragma once

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/cache_rows.h"
#include "kernels/cuda/decode_block.h"
#include "kernels/cuda/device/memory.h"

namespace kvfuse::cuda {

// Softmax of one query row over the tokens that its warp has seen: weights are relative to 2^top. Values are
// in multiples of 1 / inverse_unit, the largest weight times scale so far, so that their halves neither
// overflow nor vanish whatever the scales are, and the largest weight, the one that matters most, is exact.
// top and unit are the warp's; sum is the lane's, over its own tokens.
struct Softmax {
  float top = -FLT_MAX;  // not -infinity: a hidden score minus it must not be NaN
  float sum = 0.0F;
  float inverse_unit = 1.0F / FLT_MIN;
};

// 1 / x to a few units in the last place, for 2^-126 <= x <= 2^126. A division would do, but its slow path is
// a call that costs the loop around it registers.
KVFUSE_DEVICE float invert(float x) {
  float inverse = std::bit_cast<float>(0x7ef311c7U - std::bit_cast<std::uint32_t>(x));  // off by 1/8 at most
  KVFUSE_UNROLL
  for (int i = 0; i < 4; ++i) inverse *= 2.0F - x * inverse;  // squares the error
  return inverse;
}

// Takes in the score of this lane's own token, and returns its weight, in units. All lanes of the warp call
// it.
template <class Format, int kElements>
KVFUSE_DEVICE float weigh(float score, float scale, Softmax& s, float (&values)[kElements]) {
  constexpr float kOutgrown = 1.0F + 0x1p-12F;  // as a half, what is not above is 1 at most
  float weight = exp2_approx(score - s.top);
  float scaled = Format::kScaled ? weight * scale * s.inverse_unit : weight;
  if (ballot(score > s.top || (Format::kScaled && scaled > kOutgrown)) !=
      0) {  // rare after the first few steps
    const float top = maximum(s.top, warp_max(score));
    float factor = exp2_approx(s.top - top);
    weight = exp2_approx(score - top);
    scaled = weight;
    s.top = top;
    s.sum *= factor;
    if constexpr (Format::kScaled) {
      scaled = weight * scale;
      factor *= invert(s.inverse_unit);  // the old unit, relative to the new top
      const float most = maximum(factor, warp_max(scaled));
      s.inverse_unit = invert(most < FLT_MIN ? FLT_MIN : (most > 0x1p126F ? 0x1p126F : most));
      factor *= s.inverse_unit;
      scaled *= s.inverse_unit;
    }
    KVFUSE_UNROLL
    for (float& value : values) value *= factor;
  }
  s.sum += weight;
  return scaled;
}

// What a thread keeps while it walks over the tokens.
template <class Format, int kHeadDim, int kRows>
struct Walk {
  using Layout = RowLayout<Format, kHeadDim>;
  using Shared = DecodeShared<Format, kHeadDim, kRows>;
  static constexpr int kStride = kDecodeWarps * Layout::kStep;  // from one of a warp's steps to its next

  int piece = lane_id() % Layout::kLanes;
  int group = lane_id() / Layout::kLanes;
  int own = piece % kTokens * Layout::kGroups;  // from the lane's first token of a step to its own
  // A lone row's query stays in registers; of several, each is read again when its turn comes.
  static constexpr bool kKeepsQuery = kRows == 1;
  typename Format::Query kept_query;
  float kept_scale;
  Softmax softmax[kRows];
  float values[kRows][Layout::kElements] = {};
  const char* k_piece;  // of the lane's first token of a step
  const char* v_piece;
  const float* k_scale;  // of the lane's own token
  const float* v_scale;
  int left;  // tokens of the split from the lane's first one on

  // The pieces of every kGroups-th row, kTokens of them. In the last, incomplete step zeros stand for what
  // lies beyond the split; a full step has no such branch, nor keeps registers alive for it.
  template <bool kFull>
  KVFUSE_DEVICE void load(uint4 (&pieces)[kTokens], const char* first) const {
    KVFUSE_UNROLL
    for (int i = 0; i < kTokens; ++i) {
      const char* const at = first + i * Layout::kGroups * Layout::kRowBytes;
      if constexpr (kFull) {
        pieces[i] = load16(at);
      } else {
        pieces[i] = make_uint4(0, 0, 0, 0);
        if (i * Layout::kGroups < left) pieces[i] = load16(at);
      }
    }
  }

  KVFUSE_DEVICE void start(const Shared& shared, const DecodeParams& p, const DecodeWork& work) {
    if constexpr (kKeepsQuery) {
      kept_query = shared.query[0][piece];
      kept_scale = shared.query_scale[0];
    }
    const CacheView& cache = p.attention.cache;
    const int first_token = work.begin + warp_id() * Layout::kStep + group;
    const std::int64_t row =
        (std::int64_t{work.b} * cache.kv_heads + work.kv_head) * cache.capacity + first_token;
    // Lanes past the row's end read its last piece, which costs no traffic; their query is zero.
    const std::int64_t offset = row * Layout::kRowBytes + minimum(piece, Layout::kPieces - 1) * 16;
    k_piece = static_cast<const char*>(cache.k) + offset;
    v_piece = static_cast<const char*>(cache.v) + offset;
    if constexpr (Format::kScaled) {
      k_scale = cache.k_scale + row + own;
      v_scale = cache.v_scale + row + own;
    }
    left = work.end - first_token;
  }

  // A full step lies within the split, and every query row sees all of it.
  template <bool kFull>
  KVFUSE_DEVICE void step(const Shared& shared, const DecodeWork& work) {
    uint4 k[kTokens];
    uint4 v[kTokens];
    load<kFull>(k, k_piece);
    load<kFull>(v, v_piece);
    float own_k_scale = 0.0F;
    float own_v_scale = 0.0F;
    if (Format::kScaled && (kFull || own < left)) {
      own_k_scale = *k_scale;
      own_v_scale = *v_scale;
    }
    typename Format::Weight weights[kRows][kTokens];
    KVFUSE_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const typename Format::Query query = kKeepsQuery ? kept_query : shared.query[row][piece];
      typename Format::Score parts[kTokens];
      KVFUSE_UNROLL
      for (int i = 0; i < kTokens; ++i) parts[i] = Format::dot(query, k[i]);
      float score = static_cast<float>(sum_own_token<Layout::kLanes>(parts));
      if constexpr (Format::kScaled)
        score = score * (kKeepsQuery ? kept_scale : shared.query_scale[row]) * own_k_scale;
      float scale = own_v_scale;
      if (!kFull && (own >= left || work.end - left + own >= work.visible(row))) {
        score = -INFINITY;
        scale = 0.0F;  // that of a token which is not seen may be NaN
      }
      const typename Format::Weight weight =
          Format::weight(weigh<Format>(score, scale, softmax[row], values[row]));
      KVFUSE_UNROLL
      for (int i = 0; i < kTokens; ++i) weights[row][i] = shuffle(weight, group * Layout::kLanes + i);
    }
    Format::template accumulate<kRows>(v, weights, values);
    k_piece += kStride * Layout::kRowBytes;
    v_piece += kStride * Layout::kRowBytes;
    if constexpr (Format::kScaled) {
      k_scale += kStride;
      v_scale += kStride;
    }
  }

  KVFUSE_DEVICE void attend(const Shared& shared, const DecodeWork& work) {
    const int hidden = work.end - minimum(work.end, work.visible_to_all());  // from some row
    int seen = left + group - hidden;
    for (; seen >= Layout::kStep; seen -= kStride) step<true>(shared, work);
    left = seen + hidden - group;
    for (; left + group > 0; left -= kStride) step<false>(shared, work);
  }

  // Sums over the warp's groups of lanes and leaves the result for the merge.
  KVFUSE_DEVICE void finish(Shared& shared) const {
    KVFUSE_UNROLL
    for (int row = 0; row < kRows; ++row) {
      // Lanes past the first kTokens of a row repeat what those have.
      const float sum = warp_sum(piece < kTokens ? softmax[row].sum : 0.0F);
      if (lane_id() == 0) {
        shared.top[warp_id()][row] = softmax[row].top;
        shared.sum[warp_id()][row] = sum;
      }
      KVFUSE_UNROLL
      for (int i = 0; i < Layout::kElements; ++i) {
        float value = values[row][i];
        KVFUSE_UNROLL
        for (int mask = Layout::kLanes; mask < 32; mask *= 2) value += shuffle_xor(value, mask);
        if constexpr (Format::kScaled) value *= invert(softmax[row].inverse_unit);
        if (lane_id() < Layout::kPieces) shared.values[warp_id()][row][piece * Layout::kElements + i] = value;
      }
    }
  }
};

}  // namespace kvfuse::cuda
