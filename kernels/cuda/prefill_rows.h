// The K or the V rows that one block of prefill attention attends to: fetched tile by tile from the cache and
// from the new tokens, then prepared in place. An int8 cache's codes become values of T (exactly) and new
// rows are quantised, each to what the cache holds or will hold; the scales stay apart. The same pass writes
// the new rows of the block's own queries into the cache.
#pragma once

#include <cmath>

#include "kernels/attention.h"
#include "kernels/cuda/device/number.h"
#include "kernels/cuda/device/warp.h"
#include "kernels/cuda/prefill_tile.h"
#include "kernels/cuda/quantise_row.h"
#include "kernels/cuda/vectors.h"

namespace kvfuse::cuda {

template <typename T>
KVFUSE_DEVICE uint4 pack(const float (&values)[kVectorElements<T>]) {
  std::uint32_t words[4];
  KVFUSE_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>)
      words[i] = std::bit_cast<std::uint32_t>(values[i]);
    else
      words[i] = pack2<T>(values[2 * i], values[2 * i + 1]);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// As many int8 codes as a chunk of T has values, as that chunk.
template <typename T>
KVFUSE_DEVICE uint4 expand_codes(const std::uint32_t* packed) {
  if constexpr (std::is_same_v<T, Float16>) {
    const uint2 low = codes_to_half2(packed[0]);
    const uint2 high = codes_to_half2(packed[1]);
    return make_uint4(low.x, low.y, high.x, high.y);
  } else {
    // 0x4b0000xx is the float 2^23 + xx: no int-to-float conversion, which runs at a quarter of the rate.
    constexpr float kBias = 0x1p23F + 128.0F;
    float values[kVectorElements<T>];
    KVFUSE_UNROLL
    for (int i = 0; i < kVectorElements<T>; ++i) {
      const std::uint32_t biased = packed[i / 4] ^ 0x80808080U;
      values[i] = std::bit_cast<float>(byte_permute(biased, 0x4b000000U, 0x7440U | (i % 4U))) - kBias;
    }
    return pack<T>(values);
  }
}

// The bits of the largest magnitude among the elements of a chunk. They are ordered as the magnitudes are,
// infinity and NaN above all others.
template <typename T>
KVFUSE_DEVICE int largest_bits(const uint4& chunk) {
  const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
  int largest = 0;
  KVFUSE_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      largest = maximum(largest, magnitude_bits(std::bit_cast<float>(words[i])));
    } else {
      largest = maximum(largest, static_cast<int>(words[i] & 0x7fffU));
      largest = maximum(largest, static_cast<int>(words[i] >> 16 & 0x7fffU));
    }
  }
  return largest;
}

template <typename T>
KVFUSE_DEVICE float scale_of(int largest) {
  if constexpr (std::is_same_v<T, float>)
    return scale_of_magnitude(largest);
  else
    return scale_of_magnitude(magnitude_bits(to_f32(T{static_cast<std::uint16_t>(largest)})));
}

// The codes of x as `quantise` finds them, for a positive scale. Multiplying by the inverse
// is off by less than 2^-16 for a code up to 127, so it gives the same code unless it falls that near to a
// tie; a division for each element would cost more than the attention does.
template <int kCount>
KVFUSE_DEVICE void round_codes(const float (&x)[kCount], float scale, float (&codes)[kCount]) {
  constexpr float kRound = 0x1.8p23F;          // added and subtracted: rounds to an integer
  constexpr float kSafe = 0.5F - 0x1p-15F;     // distance from the code
  constexpr float kSmallestScale = 0x1p-120F;  // the inverse of a smaller one may overflow
  const float inverse = 1.0F / scale;
  float farthest = scale >= kSmallestScale ? 0.0F : 1.0F;
  KVFUSE_UNROLL
  for (int i = 0; i < kCount; ++i) {
    codes[i] = std::fma(x[i], inverse, kRound) - kRound;
    farthest = maximum(farthest, std::fabs(std::fma(x[i], inverse, -codes[i])));
  }
  if (farthest > kSafe) {
    KVFUSE_UNROLL
    for (int i = 0; i < kCount; ++i) codes[i] = static_cast<float>(quantise(x[i], scale));
  }
}

// The codes of a chunk of a new row, as values of T and, if `target` is given, as bytes. A row without a
// positive scale has the codes 0.
template <typename T>
KVFUSE_DEVICE uint4 quantize_chunk(const uint4& chunk, float scale, std::int8_t* target) {
  float values[kVectorElements<T>];
  float codes[kVectorElements<T>] = {};
  unpack<T>(chunk, values);
  if (scale > 0.0F) round_codes(values, scale, codes);
  if (target != nullptr) {
    KVFUSE_UNROLL
    for (int i = 0; i < kVectorElements<T>; ++i) target[i] = static_cast<std::int8_t>(codes[i]);
  }
  return pack<T>(codes);
}

template <typename T, bool kInt8, int kHeadDim>
class PrefillRows {
  using Tile = PrefillTile<T, kHeadDim>;
  using Row = typename Tile::Row;
  using Element = std::conditional_t<kInt8, std::int8_t, T>;

 public:
  // The rows of kv head `kv_head` of sequence b: tokens [0, cached) from the cache, [cached, end) from
  // `fresh`.
  KVFUSE_DEVICE PrefillRows(const CacheView& cache, void* data, float* scale, const ConstTokenView& fresh,
                            int b, std::int64_t kv_head, int cached, int end)
      : cache_(static_cast<Element*>(data)),
        scale_(scale),
        first_row_((b * cache.kv_heads + kv_head) * cache.capacity),
        fresh_(row_of<T>(fresh, b, kv_head, 0)),
        fresh_stride_(fresh.token_stride),
        cached_(cached),
        end_(end) {}

  // Starts to bring tokens [first, first + kTokens) into `rows`; rows past `end` become zeros. Old codes take
  // the front of their rows. Returns the old scale, if there is one, of the row that this thread will help to
  // prepare.
  KVFUSE_DEVICE float fetch(int first, Row* rows) const {
    // Not unrolled: what each round alone needs, kept from tile to tile, would fill the registers.
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTokens * Tile::kRowChunks; i += kPrefillThreads) {
      const int row = i / Tile::kRowChunks;
      const int chunk = i % Tile::kRowChunks;
      const int token = first + row;
      uint4* target = &rows[row].chunks[chunk];
      constexpr int kCacheValues = 16 / sizeof(Element);
      if (token >= end_)
        *target = make_uint4(0, 0, 0, 0);
      else if (token >= cached_)
        fetch_chunk(target, fresh_ + (token - cached_) * fresh_stride_ + chunk * kVectorElements<T>);
      else if (chunk < kHeadDim / kCacheValues)
        copy16_async(target, cache_ + (first_row_ + token) * kHeadDim + chunk * kCacheValues);
    }
    const int token = first + own_row();
    return kInt8 && token < end_ && token < cached_ ? scale_[first_row_ + token] : 0.0F;
  }

  // Prepares rows that have arrived; `old_scale` is what fetch returned. New tokens from own_begin on go into
  // the cache too. For an int8 cache, scales[i] becomes the scale of token first + i times `factor`.
  KVFUSE_DEVICE void prepare(int first, Row* rows, float old_scale, int own_begin, float factor,
                             float* scales) const {
    const int token = first + own_row();
    Row& row = rows[own_row()];
    const bool own = own_begin <= token && token < end_;
    Element* target =
        own ? cache_ + (first_row_ + token) * kHeadDim + part() * (kHeadDim / Tile::kRowThreads) : nullptr;
    if constexpr (kInt8) {
      const bool fresh = cached_ <= token && token < end_;
      const float scale = prepare_codes(row, fresh, old_scale, target);
      if (part() == 0) {
        scales[own_row()] = scale * factor;
        if (own) scale_[first_row_ + token] = scale;
      }
    } else {
      if (own) {
        KVFUSE_UNROLL
        for (int i = 0; i < Tile::kThreadChunks; ++i)
          store16(target + i * kVectorElements<T>, row.chunks[part() * Tile::kThreadChunks + i]);
      }
    }
  }

 private:
  static KVFUSE_DEVICE int own_row() { return static_cast<int>(threadIdx.x) / Tile::kRowThreads; }
  static KVFUSE_DEVICE int part() { return static_cast<int>(threadIdx.x) % Tile::kRowThreads; }
  static constexpr int kChunkWords = kVectorElements<T> / 4;  // words of codes for a chunk of T

  // Turns this thread's part of the row into codes, held as T; the codes of a new row also go to `target` if
  // it is given.
  KVFUSE_DEVICE float prepare_codes(Row& row, bool fresh, float old_scale, std::int8_t* target) const {
    constexpr int kWords = Tile::kThreadChunks * kChunkWords;
    uint4* chunks = row.chunks + part() * Tile::kThreadChunks;
    std::uint32_t packed[kWords] = {};
    int largest = 0;
    if (fresh) {
      KVFUSE_UNROLL
      for (int i = 0; i < Tile::kThreadChunks; ++i) largest = maximum(largest, largest_bits<T>(chunks[i]));
    } else {
      const auto* words = reinterpret_cast<const std::uint32_t*>(row.chunks) + part() * kWords;
      KVFUSE_UNROLL
      for (int i = 0; i < kWords; ++i) packed[i] = words[i];
    }
    largest = group_max<Tile::kRowThreads>(largest);
    warp_sync();  // the expanded codes of one thread overwrite the packed ones of another
    if (!fresh) {
      KVFUSE_UNROLL
      for (int i = 0; i < Tile::kThreadChunks; ++i) chunks[i] = expand_codes<T>(packed + i * kChunkWords);
      return old_scale;
    }
    const float scale = scale_of<T>(largest);
    for (int i = 0; i < Tile::kThreadChunks; ++i)
      chunks[i] =
          quantize_chunk<T>(chunks[i], scale, target == nullptr ? nullptr : target + i * kVectorElements<T>);
    return scale;
  }

  Element* cache_;          // [batch, kv_heads, capacity, head_dim]
  float* scale_;            // [batch, kv_heads, capacity]; null unless kInt8
  std::int64_t first_row_;  // of both: token 0
  const T* fresh_;          // new token 0
  std::int64_t fresh_stride_;
  int cached_;
  int end_;
};

}  // namespace kvfuse::cuda
