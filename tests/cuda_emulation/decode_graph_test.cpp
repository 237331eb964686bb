// Generation by replays of the whole decode step: the runner's own host code and the CUDA kernels, which the
// emulator runs on CPU tensors, against the LibTorch model.
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/model/decode_graph.h"
#include "csrc/model/generate.h"
#include "csrc/model/layer_sharing.h"
#include "csrc/versions/registry.h"
#include "kernels/cuda/decode_attention.cu"
#include "kernels/cuda/decode_step.cu"
#include "kernels/cuda/embedding.cu"
#include "kernels/cuda/linear.cu"
#include "kernels/cuda/sampling.cu"

namespace kvfuse {
namespace {

constexpr ModelConfig kModel = {
    .n_layer = 3, .n_head = 2, .n_embd = 128, .block_size = 48, .vocab_size = 131};

class EmulatedStep final : public ops::StepGraph {
 public:
  explicit EmulatedStep(DecodeStepParams params)
      : params_(params), logits_(params.batch * params.vocab_size) {
    params_.splits = 2;
    workspace_.resize(static_cast<std::size_t>(cuda::decode_step_workspace_bytes(params_)));
    params_.logits = logits_.data();
    params_.workspace = workspace_.data();
  }
  void replay() override {
    if (cuda::enqueue_decode_step(params_, nullptr) != cudaSuccess)
      throw std::runtime_error(emulation::last_error());
  }

 private:
  DecodeStepParams params_;
  std::vector<float> logits_;
  std::vector<char> workspace_;
};

class EmulatedServices final : public ops::CudaServices {
 public:
  ops::CudaDevice device(int) const override { return {}; }
  std::unique_ptr<ops::StepGraph> capture_step(const DecodeStepParams& params, int) const override {
    return std::make_unique<EmulatedStep>(params);
  }
  std::unique_ptr<ops::ProfiledRange> profile(const std::string&, int) const override { return nullptr; }
};

class DecodeGraphTest : public testing::TestWithParam<const char*> {};

TEST_P(DecodeGraphTest, GivesTheTokensOfTheModel) {
  const Strategy& strategy = find_version(GetParam());
  const Gpt2 model(with_shared_layers(random_weights(kModel, at::kFloat, 5, 0.2), strategy));
  const at::Tensor prompt = at::randint(0, kModel.vocab_size, {3, 7}, at::kLong);
  const std::int64_t new_tokens = 10;
  const SamplerOptions greedy;
  emulation::set_options({.seed = 1});

  KvCache cache(kModel, strategy, 3, 7 + new_tokens, at::kFloat);
  Sampler sampler(greedy);
  const at::Tensor want = generate(model, &cache, prompt, new_tokens, sampler).tokens;
  KvCache graph_cache(kModel, strategy, 3, 7 + new_tokens, at::kFloat);
  DecodeGraph graph(model, graph_cache, new_tokens, greedy, /*overlap_kernels=*/false, EmulatedServices());
  for (int call = 0; call < 2; ++call) {  // the second finds what the first left
    const at::Tensor got = generate(model, graph_cache, graph, prompt, new_tokens, sampler).tokens;
    EXPECT_TRUE(at::equal(got, want)) << "call " << call << "\n" << got << "\n" << want;
    EXPECT_EQ(graph_cache.length(), cache.length());
    EXPECT_TRUE(at::equal(graph_cache.cache_seqlens(), cache.cache_seqlens()));
  }
  EXPECT_FALSE(at::equal(want.select(1, -1), want.select(1, -2)));  // greedy output varies
}

// Sequences of different lengths, two of which outgrow the window within the run.
TEST_P(DecodeGraphTest, GivesTheTokensOfMixedLengths) {
  const Strategy& strategy = find_version(GetParam());
  const Gpt2 model(with_shared_layers(random_weights(kModel, at::kFloat, 5, 0.2), strategy));
  const TokenBatch prompt(at::randint(0, kModel.vocab_size, {3, 44}, at::kLong), {1, 44, 39});
  const std::int64_t new_tokens = 12;
  emulation::set_options({.seed = 1});
  for (const OverflowPolicy policy : {OverflowPolicy{.kind = Overflow::kSlide, .keep = 40},
                                      OverflowPolicy{.kind = Overflow::kSink, .keep = 40, .sink = 2}}) {
    KvCache cache(kModel, strategy, 3, kModel.block_size, at::kFloat);
    Sampler sampler({});
    const TokenBatch want = generate(model, &cache, prompt, new_tokens, sampler, {.overflow = policy});
    KvCache graph_cache(kModel, strategy, 3, kModel.block_size, at::kFloat);
    DecodeGraph graph(model, graph_cache, new_tokens, {}, /*overlap_kernels=*/false, EmulatedServices());
    const TokenBatch got =
        generate(model, graph_cache, graph, prompt, new_tokens, sampler, {.overflow = policy});
    EXPECT_TRUE(at::equal(got.tokens, want.tokens)) << got.tokens << "\n" << want.tokens;
    EXPECT_EQ(got.lengths, (std::vector<std::int64_t>{13, 56, 51}));
    EXPECT_EQ(graph_cache.lengths(), cache.lengths());
    EXPECT_TRUE(at::equal(graph_cache.cache_seqlens(), cache.cache_seqlens()));
  }
}

INSTANTIATE_TEST_SUITE_P(Emulated, DecodeGraphTest, testing::Values("v1", "v2", "v3", "v4", "v3a", "v4a"),
                         [](const auto& info) { return std::string(info.param); });

TEST(DecodeGraph, StopsWhenToldTo) {
  const Strategy& strategy = find_version("v2");
  const Gpt2 model(random_weights(kModel, at::kFloat, 5, 0.2));
  const at::Tensor prompt = at::randint(0, kModel.vocab_size, {1, 4}, at::kLong);
  KvCache cache(kModel, strategy, 1, 30, at::kFloat);
  DecodeGraph graph(model, cache, 20, {}, false, EmulatedServices());
  Sampler sampler({});
  int tokens = 0;
  const at::Tensor got = generate(model, cache, graph, prompt, 20, sampler,
                                  {.on_token = [&](const at::Tensor&) { return ++tokens < 5; }})
                             .tokens;
  EXPECT_EQ(got.size(1), 4 + 5);
  EXPECT_EQ(cache.length(), 4 + 4);  // the last token is chosen, not cached
}

TEST(DecodeGraph, RefusesACacheForOtherGroups) {
  const Gpt2 model(random_weights(kModel, at::kFloat, 5));
  KvCache cache(kModel, find_version("v3"), 1, 8, at::kFloat);
  EXPECT_THROW(DecodeGraph(model, cache, 7, {}, false, EmulatedServices()), std::invalid_argument);
}

}  // namespace
}  // namespace kvfuse
