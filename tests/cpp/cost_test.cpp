// Operations and bytes of a forward pass, against sums done by hand.
#include "csrc/roofline/cost.h"

#include <gtest/gtest.h>

namespace kvfuse::roofline {
namespace {

constexpr TransformerShape kTiny = {.n_layer = 2,
                                    .n_embd = 8,
                                    .vocab_size = 10,
                                    .parameters = 1000,
                                    .weight_bytes = 4,
                                    .kv_bytes_per_token = 64};

TEST(Cost, OneDecodeStep) {
  const Cost cost = forward_cost(kTiny, 1, 4, 1);
  // linear 2 * 12 * 64 = 1536, attention 5 pairs * 2 layers * 16 = 160, head 80 multiply-adds
  EXPECT_EQ(cost.flops, 2 * (1536 + 160 + 80));
  EXPECT_EQ(cost.bytes, 1000 * 4 + 5 * 64);
}

TEST(Cost, BorrowedKeysAndValuesAreNotComputed) {
  TransformerShape shared = kTiny;
  shared.borrowing_layers = 1;
  EXPECT_EQ(forward_cost(kTiny, 2, 4, 3).flops - forward_cost(shared, 2, 4, 3).flops, 2 * 2 * 3 * 2 * 64);
}

TEST(Cost, PrefillOfABatch) {
  const Cost cost = forward_cost(kTiny, 3, 0, 4);
  // 1 + 2 + 3 + 4 = 10 visible pairs a sequence
  EXPECT_EQ(cost.flops, 2 * 3 * (4 * 1536 + 10 * 32 + 80));
  EXPECT_EQ(cost.bytes, 1000 * 4 + 3 * 4 * 64);  // weights are read once for all sequences
}

TEST(Cost, CachedGenerationIsAPrefillAndSteps) {
  const MachineLimits limits{.read_bytes_per_s = 1e3, .matmul_flops_per_s = 1e6};
  const GenerationCost got = generation_cost(kTiny, true, 1, 4, 3, limits);
  const Cost passes[] = {forward_cost(kTiny, 1, 0, 4), forward_cost(kTiny, 1, 4, 1),
                         forward_cost(kTiny, 1, 5, 1)};
  double bytes = 0;
  for (const Cost& pass : passes) bytes += pass.bytes;
  EXPECT_DOUBLE_EQ(got.total.bytes, bytes);
  EXPECT_DOUBLE_EQ(got.shortest_ms, bytes);  // memory is the slower limit in every pass: bytes / 1e3 * 1e3 ms
}

TEST(Cost, RecomputingIsAPassOverEverythingForEachToken) {
  const MachineLimits limits{.read_bytes_per_s = 1e12, .matmul_flops_per_s = 1e3};
  const GenerationCost got = generation_cost(kTiny, false, 1, 4, 2, limits);
  const double flops = forward_cost(kTiny, 1, 0, 4).flops + forward_cost(kTiny, 1, 0, 5).flops;
  EXPECT_DOUBLE_EQ(got.total.flops, flops);
  EXPECT_DOUBLE_EQ(got.shortest_ms, flops);  // compute is the slower limit
}

TEST(Cost, Gpt2StepReadsEveryWeightOnce) {
  // 124,439,808 parameters less 1024 positions of 768: 494.6 MB in float32.
  const TransformerShape gpt2{.n_layer = 12,
                              .n_embd = 768,
                              .vocab_size = 50257,
                              .parameters = 124439808 - 1024 * 768,
                              .weight_bytes = 4,
                              .kv_bytes_per_token = 73728};
  EXPECT_EQ(forward_cost(gpt2, 1, 1023, 1).bytes, 494613504.0 + 1024 * 73728.0);
}

}  // namespace
}  // namespace kvfuse::roofline
