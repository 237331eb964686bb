// The most likely tokens of a row of logits, found by a block without sorting.
#pragma once

#include <bit>
#include <climits>
#include <cstdint>

#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/number.h"
#include "kernels/cuda/device/warp.h"

namespace kvfuse::cuda {

inline constexpr int kDrawThreads = 512;  // a column of counters each: 64 KiB of shared memory
inline constexpr int kDrawWarps = kDrawThreads / 32;
inline constexpr int kLogitLoads = 8;  // of a thread, 4 bytes each
inline constexpr int kDigitBits = 4;
inline constexpr int kDigits = 1 << kDigitBits;
inline constexpr float kMassOne = 0x1p40F;  // the mass of the most likely token

using Mass = unsigned long long;  // probability times kMassOne, up to a factor: sums are exact in any order

// ---- logits in order ----

// Orders like the logit; NaN comes last, and -0 equals 0.
KVFUSE_DEVICE unsigned order_key(float logit) {
  if (logit != logit) return 0;
  const unsigned bits = std::bit_cast<unsigned>(logit + 0.0F);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

KVFUSE_DEVICE float logit_of(unsigned key) {
  return std::bit_cast<float>((key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key);
}

struct Best {
  unsigned key;
  int token;
};

KVFUSE_DEVICE Best better(Best a, Best b) {
  return b.key > a.key || (b.key == a.key && b.token < a.token) ? b : a;
}

KVFUSE_DEVICE Best warp_best(Best best) {
  KVFUSE_UNROLL
  for (int mask = 16; mask > 0; mask /= 2)
    best = better(best, Best{shuffle_xor(best.key, mask), shuffle_xor(best.token, mask)});
  return best;
}

// Calls f(i, logits[i]) for i = begin, begin + stride, ... below end, with kLogitLoads loads under way.
template <typename F>
KVFUSE_DEVICE void for_each_logit(const float* logits, int begin, int end, int stride, F&& f) {
  int i = begin;
  for (; i + (kLogitLoads - 1) * stride < end; i += kLogitLoads * stride) {
    float batch[kLogitLoads];
    KVFUSE_UNROLL
    for (int j = 0; j < kLogitLoads; ++j) batch[j] = logits[i + j * stride];
    KVFUSE_UNROLL
    for (int j = 0; j < kLogitLoads; ++j) f(i + j * stride, batch[j]);
  }
  for (; i < end; i += stride) f(i, logits[i]);
}

template <int kThreads>
KVFUSE_DEVICE Best block_best(const float* logits, int vocab_size, Best (&of_warps)[kThreads / 32]) {
  Best best{0, INT_MAX};
  for_each_logit(logits, static_cast<int>(threadIdx.x), vocab_size, kThreads, [&](int i, float logit) {
    best = better(best, Best{order_key(logit), i});
  });
  best = warp_best(best);
  if (lane_id() == 0) of_warps[warp_id()] = best;
  block_sync();
  return warp_best(lane_id() < kThreads / 32 ? of_warps[lane_id()] : Best{0, INT_MAX});
}

// ---- the most likely tokens ----

// The tokens above `key` and the first `ties` of those that have it: any number of the most likely tokens.
struct Kept {
  unsigned key;
  Mass ties;
};

struct DrawShared {
  Best best[kDrawWarps];
  Mass columns[kDigits][kDrawThreads];
  Mass digits[kDigits];
  Mass above[kDrawWarps];
  Mass ties[kDrawWarps];
};

// A row of logits as probabilities.
struct LogitRow {
  const float* logits;
  int vocab_size;
  float most;
  float exponent_scale;  // log2(e) / temperature

  KVFUSE_DEVICE Mass mass_of(unsigned key) const {
    return key == 0 ? 0 : static_cast<Mass>(exp2_approx((logit_of(key) - most) * exponent_scale) * kMassOne);
  }
};

template <typename T>
KVFUSE_DEVICE Mass join(T low, T high) {
  return static_cast<Mass>(high) << 32 | low;
}

KVFUSE_DEVICE Mass warp_sum_of(Mass value) {
  KVFUSE_UNROLL
  for (int mask = 16; mask > 0; mask /= 2)
    value += join(shuffle_xor(static_cast<unsigned>(value), mask),
                  shuffle_xor(static_cast<unsigned>(value >> 32), mask));
  return value;
}

KVFUSE_DEVICE Mass warp_inclusive_sum(Mass value) {
  KVFUSE_UNROLL
  for (int distance = 1; distance < 32; distance *= 2) {
    const Mass below = join(shuffle_up(static_cast<unsigned>(value), distance),
                            shuffle_up(static_cast<unsigned>(value >> 32), distance));
    if (lane_id() >= distance) value += below;
  }
  return value;
}

// The fewest of the most likely tokens whose weights reach `target`, by radix select: four bits of the key at
// a time, from the top, the weights of each digit summed over the keys that share the bits found so far.
// Every thread counts in a column of its own: logits crowd in a few digits, where atomics would queue.
template <typename WeightOf>
KVFUSE_DEVICE Kept keep_most_likely(const LogitRow& row, DrawShared& shared, Mass target,
                                    WeightOf&& weight_of) {
  unsigned prefix = 0;
  Mass above = 0;  // the weight of all keys beyond those with the prefix
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    KVFUSE_UNROLL
    for (int digit = 0; digit < kDigits; ++digit) shared.columns[digit][threadIdx.x] = 0;
    for_each_logit(row.logits, static_cast<int>(threadIdx.x), row.vocab_size, kDrawThreads,
                   [&](int, float logit) {
                     const unsigned key = order_key(logit);
                     if (key >> shift >> kDigitBits == prefix)
                       shared.columns[key >> shift & (kDigits - 1)][threadIdx.x] += weight_of(key);
                   });
    block_sync();
    static_assert(kDrawWarps == kDigits, "a warp adds up one digit");
    Mass sum = 0;
    for (int i = lane_id(); i < kDrawThreads; i += 32) sum += shared.columns[warp_id()][i];
    sum = warp_sum_of(sum);
    if (lane_id() == 0) shared.digits[warp_id()] = sum;
    block_sync();
    unsigned digit = kDigits - 1;
    for (; digit > 0 && above + shared.digits[digit] < target; --digit) above += shared.digits[digit];
    prefix = prefix << kDigitBits | digit;
  }
  const Mass weight = weight_of(prefix);
  return {prefix, weight == 0 ? 0 : (target - above + weight - 1) / weight};
}

// The part of the vocabulary that a warp owns, and what is kept of it.
struct Segment {
  int begin, end;
  Mass ties;   // tokens with kept.key in the segments before
  Mass start;  // mass kept in the segments before
  Mass mass;   // kept in this one
  Mass total;  // kept in all
};

// Two calls need a block_sync in between: keep_most_likely has them.
KVFUSE_DEVICE Segment weigh_segment(const LogitRow& row, DrawShared& shared, const Kept& kept) {
  const int length = (row.vocab_size + kDrawThreads - 1) / kDrawThreads * 32;
  Segment own{};
  own.begin = warp_id() * length;
  own.end = own.begin + length < row.vocab_size ? own.begin + length : row.vocab_size;
  Mass above = 0, ties = 0;
  for_each_logit(row.logits, own.begin + lane_id(), own.end, 32, [&](int, float logit) {
    const unsigned key = order_key(logit);
    if (key > kept.key) above += row.mass_of(key);
    if (key == kept.key) ++ties;
  });
  above = warp_sum_of(above);
  ties = warp_sum_of(ties);
  if (lane_id() == 0) {
    shared.above[warp_id()] = above;
    shared.ties[warp_id()] = ties;
  }
  block_sync();
  const Mass tie_mass = row.mass_of(kept.key);
  Mass ties_before = 0;
  for (int warp = 0; warp < kDrawWarps; ++warp) {
    const Mass left = kept.ties > ties_before ? kept.ties - ties_before : 0;
    const Mass mass = shared.above[warp] + (shared.ties[warp] < left ? shared.ties[warp] : left) * tie_mass;
    if (warp == warp_id()) {
      own.ties = ties_before;
      own.start = own.total;
      own.mass = mass;
    }
    ties_before += shared.ties[warp];
    own.total += mass;
  }
  return own;
}

}  // namespace kvfuse::cuda
