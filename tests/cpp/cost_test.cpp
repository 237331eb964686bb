// Operations and bytes of a forward pass, against sums done by hand.
#include "csrc/roofline/cost.h"

#include <gtest/gtest.h>

#include <array>

namespace kvfuse::roofline {
namespace {

constexpr TransformerShape kTiny = {
    .n_layer = 2, .n_embd = 8, .vocab_size = 10, .weight_bytes = 4000, .kv_bytes_per_token = 64};

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

TEST(Cost, BeyondWhatIsSeenAtOnce) {
  const MachineLimits limits{.read_bytes_per_s = 1e3, .matmul_flops_per_s = 1e6};
  const auto flops = [&](bool cached, bool run_again) {
    return generation_cost(kTiny, cached, 1, 3, 5, limits, {.most = 4, .keep = 2, .run_again = run_again})
        .total.flops;
  };
  const auto pass = [](std::int64_t past, std::int64_t tokens) {
    return forward_cost(kTiny, 1, past, tokens).flops;
  };
  // 3 tokens are seen, then 4; instead of 5 it is 2, then 3, then 4.
  EXPECT_DOUBLE_EQ(flops(false, true), pass(0, 3) + pass(0, 4) + pass(0, 2) + pass(0, 3) + pass(0, 4));
  EXPECT_DOUBLE_EQ(flops(true, true), pass(0, 3) + pass(3, 1) + pass(0, 2) + pass(2, 1) + pass(3, 1));
  EXPECT_DOUBLE_EQ(flops(true, false), pass(0, 3) + pass(3, 1) + pass(1, 1) + pass(2, 1) + pass(3, 1));
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
                              .weight_bytes = 4 * (124439808 - 1024 * 768),
                              .kv_bytes_per_token = 73728};
  EXPECT_EQ(forward_cost(gpt2, 1, 1023, 1).bytes, 494613504.0 + 1024 * 73728.0);
}

struct Layers {
  std::int64_t count, sharing_group, heads, head_dim;
};

// Multiply-adds of every product of a pass, counted one by one as the model does them.
std::int64_t count_multiply_adds(const Layers& layers, std::int64_t vocab_size, std::int64_t batch,
                                 std::int64_t past, std::int64_t tokens) {
  const std::int64_t n = layers.heads * layers.head_dim;
  std::int64_t sum = 0;
  for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
    for (std::int64_t layer = 0; layer < layers.count; ++layer)
      for (std::int64_t query = past; query < past + tokens; ++query) {
        sum += n * n;                                             // Q
        if (layer % layers.sharing_group == 0) sum += 2 * n * n;  // K, V
        for (std::int64_t head = 0; head < layers.heads; ++head)
          for (std::int64_t key = 0; key <= query; ++key) {
            sum += layers.head_dim;  // a score
            sum += layers.head_dim;  // its value
          }
        sum += n * n;      // output projection
        sum += n * 4 * n;  // MLP, up
        sum += 4 * n * n;  // and down
      }
    sum += n * vocab_size;  // the last token's logits
  }
  return sum;
}

TEST(Cost, EqualsACountOfEveryProduct) {
  for (const std::int64_t group : {1, 2, 3})
    for (const std::int64_t batch : {1, 3})
      for (const auto& [past, tokens] : {std::array<std::int64_t, 2>{0, 1}, {0, 7}, {7, 1}, {5, 4}}) {
        const Layers layers{.count = 5, .sharing_group = group, .heads = 3, .head_dim = 4};
        const TransformerShape shape{.n_layer = 5,
                                     .borrowing_layers = 5 - (5 + group - 1) / group,
                                     .n_embd = 12,
                                     .vocab_size = 17,
                                     .weight_bytes = 4};
        const std::int64_t products = count_multiply_adds(layers, 17, batch, past, tokens);
        EXPECT_EQ(forward_cost(shape, batch, past, tokens).flops, 2.0 * static_cast<double>(products))
            << "groups of " << group << ", batch " << batch << ", " << past << " + " << tokens;
      }
}

// GPT-2 medium in float16, as the published profile has it.
constexpr TransformerShape kMedium = {.n_layer = 24,
                                      .n_embd = 1024,
                                      .vocab_size = 50257,
                                      .weight_bytes = 2 * (354823168 - 1024 * 1024),
                                      .element_bytes = 2,
                                      .kv_bytes_per_token = 2 * 24 * 1024 * 2};

TEST(Cost, PrefillOfGpt2Medium) {
  TransformerShape uncached = kMedium;
  uncached.kv_bytes_per_token = 0;
  const Cost v0 = forward_cost(uncached, 1, 0, 512);
  const Cost v1 = forward_cost(kMedium, 1, 0, 512);
  // 309.2 GFLOP in linear layers, 12.9 in causal attention, 0.1 in the head
  EXPECT_EQ(v0.flops, 309'237'645'312.0 + 12'910'067'712.0 + 102'926'336.0);
  EXPECT_EQ(v1.flops, v0.flops);                              // the cache is written, nothing else
  EXPECT_EQ(v1.bytes - v0.bytes, 512.0 * 2 * 24 * 1024 * 2);  // K and V of every token
}

TEST(Cost, DecodeDoesFarLessAndMoreOfItIsMoving) {
  const Cost prefill = forward_cost(kMedium, 1, 0, 512);
  const Cost decode = forward_cost(kMedium, 1, 512, 1);
  EXPECT_LT(decode.flops, prefill.flops / 400);
  EXPECT_LT(decode.intensity(), 1.1);  // float16: two bytes for a multiply-add of two FLOPs
  EXPECT_GT(prefill.intensity(), 400);
}

TEST(Cost, TheRoofIsTheLowerOfTwoLimits) {
  const MachineLimits limits{.read_bytes_per_s = 10, .matmul_flops_per_s = 400};
  EXPECT_EQ(limits.ridge(), 40);
  EXPECT_EQ(limits.attainable_flops_per_s(2), 20);
  EXPECT_EQ(limits.attainable_flops_per_s(40), 400);
  EXPECT_EQ(limits.attainable_flops_per_s(1000), 400);
  for (const Cost& cost : {Cost{.flops = 100, .bytes = 50}, Cost{.flops = 4000, .bytes = 50}}) {
    // A pass at its roof takes the shortest time.
    EXPECT_DOUBLE_EQ(cost.flops / limits.attainable_flops_per_s(cost.intensity()) * 1e3,
                     shortest_ms(cost, limits));
  }
}

}  // namespace
}  // namespace kvfuse::roofline
