// Rows of logits by blocks: vectors find the block with the largest value, a loop its place there.
#include "kernels/largest.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kBlock = 512;
constexpr int kChains = 4;                           // of maxima, side by side: each waits for the one before
constexpr std::int64_t kValuesPerWorker = 64 << 10;  // 4 us of reading; waking a thread takes 1 us or more
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The largest of a whole block; NaN if one is a NaN or +infinity.
float largest_of_block(const float* x) {
  Vec most[kChains];
  std::fill_n(most, kChains, splat(-kInfinity));
  Vec spoilt = zero();  // stays 0 unless one is
  for (std::int64_t i = 0; i < kBlock; i += kChains * kLanes)
    for (int c = 0; c < kChains; ++c) {
      const Vec values = load(x + i + c * kLanes);
      most[c] = max(most[c], values);
      spoilt = add(spoilt, keep_if_not_less(splat(1.0F), values, splat(kInfinity)));
    }
  if (reduce_add(spoilt) != 0.0F) return std::numeric_limits<float>::quiet_NaN();
  return reduce_max(max(max(most[0], most[1]), max(most[2], most[3])));
}

void find_in_row(const float* row, std::int64_t size, float* largest, std::int64_t* index) {
  float best = -kInfinity;
  std::int64_t block = 0;
  for (std::int64_t i = 0; i < size; i += kBlock) {
    alignas(64) float padded[kBlock];
    const float* x = row + i;
    if (size - i < kBlock) {
      std::copy_n(x, size - i, padded);
      std::fill(padded + (size - i), padded + kBlock, -kInfinity);
      x = padded;
    }
    const float most = largest_of_block(x);
    if (most <= best) continue;
    best = most;
    block = i;
    if (std::isnan(most)) break;
  }
  *largest = best;
  const float* end = row + std::min(block + kBlock, size);
  *index = std::isnan(best) ? 0 : std::find(row + block, end, best) - row;
}

}  // namespace

void find_largest(const LargestParams& p) {
  const int workers =
      std::max(worker_count(std::min(p.row_count, p.row_count * p.row_size / kValuesPerWorker)), 1);
  parallel_tasks(p.row_count, workers, [&](std::int64_t row, std::int64_t, int) {
    find_in_row(p.rows + row * p.row_size, p.row_size, p.largest + row, p.index + row);
  });
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
