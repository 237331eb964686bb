// The two products of decode attention with rows of the cache, as they lie there: scores = query . K rows,
// and values = weights . V rows. For an int8 cache both are integer products on the codes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/simd.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr int kMostRows =
    512;  // weighted_sum takes at most so many: its 32-bit sums hold 512 rows of 127 * 32767

// What the dot products with K start from: the query times softmax_scale, in 16 bits for an int8 cache.
template <typename T, int kHeadDim>
struct Query {
  alignas(64) float values[kHeadDim];
};
template <int kHeadDim>
struct Query<std::int8_t, kHeadDim> {
  alignas(64) std::int16_t values[kHeadDim];
  float scale;
};

template <typename T, int kHeadDim>
void prepare(const float* q, Query<T, kHeadDim>& query) {
  if constexpr (std::is_same_v<T, std::int8_t>) {
    constexpr float kLargest = 32767.0F;  // 32767 * 127 * head_dim stays below 2^31 for head sizes up to 512
    Vec most = zero();
    Vec spoilt = zero();  // turns NaN where an element is not finite, as then must the scores
    for (int d = 0; d < kHeadDim; d += kLanes) {
      most = max(most, absolute(load(q + d)));
      spoilt = fma(load(q + d), zero(), spoilt);
    }
    const float absmax = reduce_max(most);
    const float inverse = absmax > 0.0F ? kLargest / absmax : 0.0F;
    for (int d = 0; d < kHeadDim; d += kLanes) quantize(mul(load(q + d), splat(inverse)), query.values + d);
    query.scale = absmax / kLargest + reduce_add(spoilt);
  } else {
    std::copy_n(q, kHeadDim, query.values);
  }
}

// Into which cache. kOnce: the first one, for what is read but once; it leaves the second one alone.
enum class Level : std::uint8_t { kOnce, kFirst, kSecond };

// Brings the lines of a row block that is needed a whole pass later. Always inlined: a call that only
// prefetches is one that GCC 12 may leave out.
template <Level kLevel, typename T>
[[gnu::always_inline]] inline void prefetch_block(const T* block, int elements) {
  constexpr int kLocality = kLevel == Level::kOnce ? 0 : (kLevel == Level::kFirst ? 3 : 2);
  const char* line = reinterpret_cast<const char*>(block);
  for (int offset = 0; offset < elements * static_cast<int>(sizeof(T)); offset += 64)
    __builtin_prefetch(line + offset, 0, kLocality);
}

// scores[r] = query . rows[r] for kRows consecutive rows.
template <int kRows, typename T, int kHeadDim>
inline void dot_rows(const Query<T, kHeadDim>& query, const T* rows, float* scores) {
  if constexpr (std::is_same_v<T, std::int8_t> && kRows == 8 && kHeadDim % kCodeLanes == 0) {
    CodeSum acc[kRows];
    for (CodeSum& lanes : acc) lanes = code_zero();
    for (int d = 0; d < kHeadDim; d += kCodeLanes)
      for (int r = 0; r < kRows; ++r)
        acc[r] = code_dot(acc[r], load_codes(rows + r * kHeadDim + d), query.values + d);
    sum_rows8(acc, scores);
  } else if constexpr (std::is_same_v<T, std::int8_t>) {
    IntVec acc[kRows];
    for (int r = 0; r < kRows; ++r) acc[r] = int_zero();
    for (int d = 0; d < kHeadDim; d += kIntLanes)
      for (int r = 0; r < kRows; ++r) acc[r] = int_dot(acc[r], query.values + d, rows + r * kHeadDim + d);
    if constexpr (kRows == 8)
      sum_rows8(acc, scores);
    else
      scores[0] = reduce_add(acc[0]);
  } else {
    Vec acc[kRows];
    for (int r = 0; r < kRows; ++r) acc[r] = zero();
    for (int d = 0; d < kHeadDim; d += kLanes)
      for (int r = 0; r < kRows; ++r)
        acc[r] = fma(load(query.values + d), load(rows + r * kHeadDim + d), acc[r]);
    if constexpr (kRows == 8)
      sum_rows8(acc, scores);
    else
      scores[0] = reduce_add(acc[0]);
  }
}

// Channels whose sums fit the registers at once.
template <int kHeadDim>
constexpr int kWidth = kHeadDim % 64 == 0 ? 64 : (kHeadDim <= 96 ? kHeadDim : 16);

// out[d] = sum over count rows of weights[i] * rows[i][d]. As many rows from next_k on are prefetched
// meanwhile.
template <int kHeadDim, Level kLevel, typename T>
inline void weighted_sum(const float* weights, const T* rows, int count, const T* next_k, float* out) {
  constexpr int kVectors = kWidth<kHeadDim> / kLanes;
  for (int begin = 0; begin < kHeadDim; begin += kWidth<kHeadDim>) {
    Vec acc[kVectors];
    for (Vec& lane : acc) lane = zero();
    for (int i = 0; i < count; ++i) {
      if (begin == 0) prefetch_block<kLevel>(next_k + i * kHeadDim, kHeadDim);
      const Vec weight = splat(weights[i]);
      const T* row = rows + i * kHeadDim + begin;
      for (int j = 0; j < kVectors; ++j) acc[j] = fma(weight, load(row + j * kLanes), acc[j]);
    }
    for (int j = 0; j < kVectors; ++j) store(out + begin + j * kLanes, acc[j]);
  }
}

// Beside int8 rows weights are rounded to integers of 15 bits, off by at most 2^-16 of the largest.
struct Rounding {
  float scale;    // a weight = integer * scale; NaN if a weight is
  float inverse;  // 0 where all weights are
};
inline Rounding rounding_of(const float* weights, int count) {
  constexpr float kLargest = 32767.0F;
  Vec most = zero();
  Vec spoilt = zero();  // turns NaN with a weight, as then must the sums
  for (int i = 0; i < count; i += kLanes) {
    most = max(most, load(weights + i));
    spoilt = fma(load(weights + i), zero(), spoilt);
  }
  const float largest = reduce_max(most);
  return {largest / kLargest + reduce_add(spoilt), largest > 0.0F ? kLargest / largest : 0.0F};
}

#if defined(__AVX512VNNI__)
// The same sums on int8 rows of whole ByteVecs, four rows at a time: products of bytes, by the high and the
// low ones of the weights. The sums are exact: the same bits as two rows at a time. Weights are rounded in
// between, as rows keep coming: in a pass of its own that would ask for none.
template <int kHeadDim, Level kLevel>
inline void weighted_sum_of_quads(const float* weights, const std::int8_t* rows, int count,
                                  const std::int8_t* next_k, float* out) {
  const Rounding rounding = rounding_of(weights, count);
  for (int begin = 0; begin < kHeadDim; begin += kWidth<kHeadDim>) {
    CodeSum of_high[4], of_low[4];
    for (int j = 0; j < 4; ++j) of_high[j] = of_low[j] = code_zero();
    const auto add_rows = [&](int i, ByteVec weight_high, ByteVec weight_low) {
      if (begin == 0) prefetch_block<kLevel>(next_k + i * kHeadDim, 4 * kHeadDim);
      ByteVec codes[4], quads[4];
      for (int r = 0; r < 4; ++r)  // behind the last row itself again, with weight 0
        codes[r] = load_bytes(rows + std::min(i + r, count - 1) * kHeadDim + begin);
      interleave_rows(codes, quads);
      for (int j = 0; j < 4; ++j) {
        of_high[j] = byte_dot(of_high[j], weight_high, quads[j]);
        of_low[j] = byte_dot(of_low[j], weight_low, quads[j]);
      }
    };
    for (int i = 0; i < count; i += kLanes) {
      alignas(64) std::uint8_t high[kLanes], low[kLanes];
      quantize(mul(load(weights + i), splat(rounding.inverse)), high, low);
      for (int j = 0; j < std::min(kLanes, count - i); j += 4)
        add_rows(i + j, load_quad(high + j), load_quad(low + j));
    }
    store_scaled(out + begin, of_high, of_low, rounding.scale);
  }
}
#endif

// The same on int8 rows, two at a time.
template <int kHeadDim, Level kLevel>
inline void weighted_sum(const float* weights, const std::int8_t* rows, int count, const std::int8_t* next_k,
                         float* out) {
#if defined(__AVX512VNNI__)
  if constexpr (kHeadDim % 64 == 0)
    return weighted_sum_of_quads<kHeadDim, kLevel>(weights, rows, count, next_k, out);
#endif
  alignas(64) std::int16_t rounded[kMostRows + kLanes];
  const Rounding rounding = rounding_of(weights, count);
  for (int i = 0; i < count; i += kLanes)
    quantize(mul(load(weights + i), splat(rounding.inverse)), rounded + i);

  constexpr int kVectors = kWidth<kHeadDim> / kPairChannels;
  for (int begin = 0; begin < kHeadDim; begin += kWidth<kHeadDim>) {
    IntVec acc[kVectors];
    for (IntVec& lane : acc) lane = int_zero();
    for (int i = 0; i < count; i += 2) {
      if (begin == 0) prefetch_block<kLevel>(next_k + i * kHeadDim, 2 * kHeadDim);
      const int partner = i + 1 < count ? i + 1 : i;  // an odd last row meets itself with weight 0
      const IntVec pair = pair_weights(rounded[i], partner > i ? rounded[partner] : std::int16_t{0});
      add_row_pair<kWidth<kHeadDim>>(rows + i * kHeadDim + begin, rows + partner * kHeadDim + begin, pair,
                                     acc);
    }
    for (int j = 0; j < kVectors; ++j) store_scaled(out + begin + j * kPairChannels, acc[j], rounding.scale);
  }
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
