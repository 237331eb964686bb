// Rows of x rounded to integers, as the products beside codes of weights take them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/cpu/linear_products.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr std::int64_t activation_blocks(std::int64_t in) {
  return (in + kActivationBlock - 1) / kActivationBlock;
}

// NaN if an element is not finite, so that the products are not either.
inline float absmax_of(const float* x, std::int64_t count) {
  Vec most = zero();
  Vec spoilt = zero();  // stays 0 unless an element is not finite
  for (std::int64_t i = 0; i < count; i += kLanes) {
    most = max(most, absolute(load(x + i)));
    spoilt = fma(load(x + i), zero(), spoilt);
  }
  const float spoilt_sum = reduce_add(spoilt);
  return spoilt_sum == 0.0F ? reduce_max(most) : spoilt_sum;
}

// A row beside int8 weights: x = code * scale. Codes of a block are multiples of 2^shift, unless it keeps all
// its bits.
struct RoundedRow {
  std::int16_t* codes = nullptr;  // [activation_blocks * kActivationBlock]
  std::int32_t* shift = nullptr;  // [activation_blocks]: the block's largest takes eight bits
  bool* whole = nullptr;          // [activation_blocks]: it keeps all its bits

  // Of a row of zeros, or one that is to become NaN by its scale.
  void clear(std::int64_t blocks) const {
    std::fill_n(codes, blocks * kActivationBlock, std::int16_t{0});
    std::fill_n(shift, blocks, 0);
    std::fill_n(whole, blocks, false);
  }
};

// The lower median of shifts.
inline int middle_of(const std::int32_t* shift, std::int64_t blocks) {
  std::int64_t counts[kMostActivationShift + 1] = {};
  for (std::int64_t b = 0; b < blocks; ++b) ++counts[shift[b]];
  int middle = 0;
  for (std::int64_t below = counts[0]; 2 * below < blocks; below += counts[middle]) ++middle;
  return middle;
}

// `x` goes on with zeros to the end of its last block. `fine`: all blocks are whole, with one shift. Returns
// the scale, NaN for a row that is not finite.
inline float round_row(const float* x, std::int64_t in, bool fine, const RoundedRow& out) {
  const std::int64_t levels = activation_levels(in), blocks = activation_blocks(in);
  const float absmax = absmax_of(x, blocks * kActivationBlock);
  const float steps = static_cast<float>(levels) / absmax;
  if (!(steps <= std::numeric_limits<float>::max())) {
    out.clear(blocks);
    return absmax / static_cast<float>(levels);
  }
  const std::int32_t most_shift = activation_shift(levels);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const float parts = absmax_of(x + b * kActivationBlock, kActivationBlock) * steps / 127.0F;
    // Its logarithm to base 2, rounded up, by the bits of the float.
    const std::int32_t shift = ((std::bit_cast<std::int32_t>(parts) + 0x7fffff) >> 23) - 127;
    out.shift[b] = fine ? most_shift : std::clamp(shift, 0, most_shift);
  }
  const int least_whole = fine ? 0 : middle_of(out.shift, blocks) + kWholeBlockShift;
  for (std::int64_t b = 0; b < blocks; ++b) {
    out.whole[b] = out.shift[b] >= least_whole;
    const auto step = static_cast<float>(1 << (out.whole[b] ? 0 : out.shift[b]));
    for (std::int64_t i = b * kActivationBlock; i < (b + 1) * kActivationBlock; i += kLanes)
      quantize(mul(round_to_even(mul(load(x + i), splat(steps / step))), splat(step)), out.codes + i);
  }
  return absmax / static_cast<float>(levels);
}

// A group of a row beside 4-bit weights: x = code * the scale returned, NaN for one that is not finite.
inline float round_group(const float* x, std::int8_t* codes) {
  const float absmax = absmax_of(x, kInt4Group);
  const float inverse = absmax > 0.0F ? kInt4ActivationLevels / absmax : 0.0F;
  for (std::int64_t i = 0; i < kInt4Group; i += kLanes) quantize(mul(load(x + i), splat(inverse)), codes + i);
  return absmax / kInt4ActivationLevels;
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
