// The next token of every sequence: argmax, or a draw from the most likely tokens, found without sorting.
#include "kernels/cuda/sampling.h"

#include <bit>
#include <cmath>

#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/grid.h"
#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/warp.h"
#include "kernels/cuda/likely_tokens.h"

namespace kvfuse::cuda {
namespace {

constexpr float kLog2E = 1.4426950409F;
constexpr int kGreedyThreads = 1024;  // one block reads the whole row: as many loads in flight as it can
constexpr std::int64_t kMaxVocab = std::int64_t{1} << 22;  // so that a sum of masses stays below 2^62

// By one thread of the block, once no other reads `steps` any more.
KVFUSE_DEVICE void finish(const SamplingParams& p, std::int64_t b, std::int32_t step, int token) {
  if (p.out_tokens != nullptr && step >= 0 && step < p.out_capacity)
    p.out_tokens[b * p.out_capacity + step] = token;
  p.tokens[b] = token;
  p.steps[b] = step + 1;
  if (p.cache_seqlens != nullptr) p.cache_seqlens[b] += 1;
}

struct GreedyShared {
  Best best[kGreedyThreads / 32];
};

// Grid: (batch).
KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(kGreedyThreads, 1)
    greedy_kernel(KVFUSE_GRID_CONSTANT SamplingParams p) {
  GreedyShared& shared = block_shared<GreedyShared>();
  allow_next_kernel();
  wait_for_previous_kernel();
  const std::int64_t b = blockIdx.x;
  const std::int32_t step = p.steps[b];
  const Best best =
      block_best<kGreedyThreads>(p.logits + b * p.vocab_size, static_cast<int>(p.vocab_size), shared.best);
  if (threadIdx.x == 0) finish(p, b, step, best.token);
}

struct RandomBlock {
  unsigned word[4];
};

// Philox4x32-10: the four words that belong to a counter.
KVFUSE_DEVICE RandomBlock philox(RandomBlock counter, std::uint64_t seed) {
  unsigned key[2] = {static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53U} * counter.word[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57U} * counter.word[2];
    counter = {{static_cast<unsigned>(b >> 32) ^ counter.word[1] ^ key[0], static_cast<unsigned>(b),
                static_cast<unsigned>(a >> 32) ^ counter.word[3] ^ key[1], static_cast<unsigned>(a)}};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

// The upper half of a 128-bit product.
KVFUSE_DEVICE Mass multiply_high(Mass a, Mass b) {
  const Mass a_low = static_cast<unsigned>(a), a_high = a >> 32;
  const Mass b_low = static_cast<unsigned>(b), b_high = b >> 32;
  const Mass middle = a_high * b_low + (a_low * b_low >> 32);
  const Mass cross = a_low * b_high + static_cast<unsigned>(middle);
  return a_high * b_high + (middle >> 32) + (cross >> 32);
}

// The token of the segment where the running sum of the kept masses passes `target`. By a whole warp.
KVFUSE_DEVICE int find_token(const LogitRow& row, const Kept& kept, const Segment& segment, Mass target) {
  Mass reached = segment.start;
  Mass ties = segment.ties;
  for (int first = segment.begin; first < segment.end; first += 32) {
    const int i = first + lane_id();
    const unsigned key = i < segment.end ? order_key(row.logits[i]) : 0;
    const bool ties_here = i < segment.end && key == kept.key;
    const unsigned tied = ballot(ties_here);
    const Mass rank = ties + static_cast<Mass>(std::popcount(tied & ((1U << lane_id()) - 1U)));
    const bool is_kept = i < segment.end && (key > kept.key || (ties_here && rank < kept.ties));
    const Mass sum = reached + warp_inclusive_sum(is_kept ? row.mass_of(key) : 0);
    const unsigned passed = ballot(sum > target);
    if (passed != 0) return first + std::countr_zero(passed);
    reached = join(shuffle(static_cast<unsigned>(sum), 31), shuffle(static_cast<unsigned>(sum >> 32), 31));
    ties += static_cast<Mass>(std::popcount(tied));
  }
  return segment.begin;  // not reached: target lies within the segment
}

KVFUSE_DEVICE Kept keep(const SamplingParams& p, const LogitRow& row, DrawShared& shared) {
  Kept kept{0, 0};  // all but NaN
  if (p.top_k > 0 && p.top_k < p.vocab_size)
    kept = keep_most_likely(row, shared, static_cast<Mass>(p.top_k), [](unsigned) { return Mass{1}; });
  if (p.top_p < 1.0) {
    const Mass total = weigh_segment(row, shared, kept).total;
    const Mass target = static_cast<Mass>(std::ceil(p.top_p * static_cast<double>(total)));
    // Equals of the last of the top k count in full here. They come last, and without the surplus the target
    // is reached already.
    kept = keep_most_likely(row, shared, target,
                            [&](unsigned key) { return key >= kept.key ? row.mass_of(key) : Mass{0}; });
  }
  return kept;
}

// Grid: (batch).
KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(kDrawThreads, 1) draw_kernel(KVFUSE_GRID_CONSTANT SamplingParams p) {
  DrawShared& shared = block_shared<DrawShared>();
  allow_next_kernel();
  wait_for_previous_kernel();
  const std::int64_t b = blockIdx.x;
  const std::int32_t step = p.steps[b];
  LogitRow row{p.logits + b * p.vocab_size, static_cast<int>(p.vocab_size), 0.0F, kLog2E / p.temperature};
  const Best best = block_best<kDrawThreads>(row.logits, row.vocab_size, shared.best);
  row.most = logit_of(best.key);
  if (best.key == 0 || !std::isfinite(row.most)) {
    if (threadIdx.x == 0) finish(p, b, step, best.token);
    return;
  }
  const Kept kept = keep(p, row, shared);
  const Segment segment = weigh_segment(row, shared, kept);
  const RandomBlock random = philox({{static_cast<unsigned>(step), static_cast<unsigned>(b), 0, 0}}, p.seed);
  const Mass target = multiply_high(join(random.word[0], random.word[1]), segment.total);
  if (target < segment.start || target - segment.start >= segment.mass) return;  // another warp's
  const int token = find_token(row, kept, segment, target);
  if (lane_id() == 0) finish(p, b, step, token);
}

bool is_valid(const SamplingParams& p) {
  return p.batch > 0 && p.vocab_size > 0 && p.vocab_size <= kMaxVocab && p.logits != nullptr &&
         p.tokens != nullptr && p.steps != nullptr && p.temperature >= 0.0F && std::isfinite(p.temperature) &&
         p.top_k >= 0 && p.top_p > 0.0 && p.top_p <= 1.0;
}

}  // namespace

cudaError_t sample(const SamplingParams& p, bool overlap_previous, cudaStream_t stream) {
  if (!is_valid(p)) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(p.batch));
  // A temperature whose inverse overflows leaves the largest logit alone.
  if (p.temperature == 0.0F || !std::isfinite(kLog2E / p.temperature))
    return launch(greedy_kernel, LaunchShape{grid, kGreedyThreads, sizeof(GreedyShared), overlap_previous},
                  stream, p);
  return launch(draw_kernel, LaunchShape{grid, kDrawThreads, sizeof(DrawShared), overlap_previous}, stream,
                p);
}

}  // namespace kvfuse::cuda
