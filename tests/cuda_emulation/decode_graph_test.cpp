// Generation by replays of the whole decode step: the runner's own host code and the CUDA kernels, which the
// emulator runs on CPU tensors, against the LibTorch model.
#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/model/decode_graph.h"
#include "csrc/model/generate.h"
#include "csrc/model/layer_sharing.h"
#include "csrc/model/overflow.h"
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

// The model's kernels and the emulated ones round differently, and a tie of two tokens may go either way. So
// the model follows the tokens that the graph chose, and each of them must be its most likely one to within
// this share of the logits' standard deviation: a random token misses it by more than one of them.
constexpr double kTie = 0.02;

void expect_greedy(const Gpt2& model, const Strategy& strategy, const TokenBatch& prompt,
                   const TokenBatch& generated, const OverflowPolicy& overflow, std::int64_t capacity) {
  const c10::InferenceMode inference;
  KvCache cache(kModel, strategy, prompt.tokens.size(0), capacity, at::kFloat);
  at::Tensor newest;  // [batch, 1]
  for (TokenBatch seen = prompt; seen.lengths != generated.lengths;) {
    if (newest.defined()) make_room(model, cache, seen, overflow);
    const at::Tensor logits =
        model.forward(newest.defined() ? TokenBatch(newest) : prompt, &cache, LogitsOf::kLastToken)
            .select(1, 0)
            .to(at::kDouble);
    const at::Tensor next = at::tensor(at::IntArrayRef(seen.lengths)).unsqueeze(1);
    newest = generated.tokens.gather(1, next);
    const at::Tensor missed = (logits.amax(1) - logits.gather(1, newest).squeeze(1)) / logits.std(1);
    ASSERT_LE(missed.max().item<double>(), kTie) << "at the positions\n" << next << "\n" << missed;
    for (std::int64_t& length : seen.lengths) ++length;
    seen.tokens = generated.tokens.narrow(1, 0, seen.longest());
  }
}

class DecodeGraphTest : public testing::TestWithParam<const char*> {};

TEST_P(DecodeGraphTest, GivesTheTokensOfTheModel) {
  const Strategy& strategy = find_version(GetParam());
  const Gpt2 model(with_shared_layers(random_weights(kModel, at::kFloat, 5, 0.2), strategy));
  const TokenBatch prompt(at::randint(0, kModel.vocab_size, {3, 7}, at::kLong));
  const std::int64_t new_tokens = 10;
  emulation::set_options({.seed = 1});

  KvCache cache(kModel, strategy, 3, 7 + new_tokens, at::kFloat);
  DecodeGraph graph(model, cache, new_tokens, {}, /*overlap_kernels=*/false, EmulatedServices());
  Sampler sampler({});
  at::Tensor tokens;
  for (int call = 0; call < 2; ++call) {  // the second finds what the first left
    const TokenBatch got = generate(model, cache, graph, prompt, new_tokens, sampler);
    EXPECT_EQ(got.lengths, (std::vector<std::int64_t>(3, 7 + new_tokens)));
    EXPECT_TRUE(at::equal(got.tokens.narrow(1, 0, 7), prompt.tokens));
    expect_greedy(model, strategy, prompt, got, {}, cache.capacity());
    EXPECT_EQ(cache.length(), 7 + new_tokens - 1);  // the last token is chosen, not cached
    EXPECT_TRUE(cache.cache_seqlens().eq(cache.length()).all().item<bool>());
    tokens = got.tokens;
  }
  const at::Tensor chosen = tokens.narrow(1, 7, new_tokens).contiguous();
  const auto* ids = chosen.const_data_ptr<std::int64_t>();
  EXPECT_GT(std::set<std::int64_t>(ids, ids + chosen.numel()).size(), 5) << chosen;
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
    DecodeGraph graph(model, cache, new_tokens, {}, /*overlap_kernels=*/false, EmulatedServices());
    Sampler sampler({});
    const TokenBatch got = generate(model, cache, graph, prompt, new_tokens, sampler, {.overflow = policy});
    EXPECT_EQ(got.lengths, (std::vector<std::int64_t>{13, 56, 51}));
    expect_greedy(model, strategy, prompt, got, policy, cache.capacity());

    // The lengths do not depend on the tokens.
    KvCache model_cache(kModel, strategy, 3, kModel.block_size, at::kFloat);
    generate(model, &model_cache, prompt, new_tokens, sampler, {.overflow = policy});
    EXPECT_EQ(cache.lengths(), model_cache.lengths());
    EXPECT_TRUE(at::equal(cache.cache_seqlens(), model_cache.cache_seqlens()));
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
