// Cross-layer sharing: what a borrowing layer computes, keeps and costs, for any group size.
#include "csrc/model/layer_sharing.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "csrc/model/generate.h"
#include "csrc/versions/registry.h"

namespace kvfuse {
namespace {

// Five layers: groups of 2 and 3 leave a smaller last one.
constexpr ModelConfig kOdd = {.n_layer = 5, .n_head = 4, .n_embd = 64, .block_size = 96, .vocab_size = 101};

Strategy sharing(int group, QAlignment alignment = QAlignment::kNone,
                 KvCacheDtype dtype = KvCacheDtype::kModel) {
  return {.name = "test",
          .description = "",
          .use_cache = true,
          .kv_cache_dtype = dtype,
          .sharing_group = group,
          .q_alignment = alignment};
}

Gpt2Weights odd_weights() { return random_weights(kOdd, at::kFloat, 3, 0.2); }

at::Tensor random_tokens(std::int64_t batch, std::int64_t length) {
  return at::randint(0, kOdd.vocab_size, {batch, length}, at::TensorOptions().dtype(at::kLong));
}

TEST(LayerSharing, CachedLogitsAreTheUncachedOnesInEveryGroupSize) {
  const c10::InferenceMode inference;
  const at::Tensor tokens = random_tokens(2, 30);
  at::Tensor previous;
  for (const int group : {1, 2, 3, 5, 7}) {
    const Strategy strategy = sharing(group);
    const Gpt2 model(with_shared_layers(odd_weights(), strategy));
    const at::Tensor want = model.forward(tokens, nullptr, LogitsOf::kEveryToken);
    KvCache cache(kOdd, strategy, 2, 30, at::kFloat);
    at::Tensor got = model.forward(tokens.narrow(1, 0, 11), &cache, LogitsOf::kEveryToken);
    for (std::int64_t t = 11; t < 30; ++t)
      got = at::cat({got, model.forward(tokens.narrow(1, t, 1), &cache, LogitsOf::kEveryToken)}, 1);
    EXPECT_TRUE(at::allclose(got, want, 1e-4, 1e-4)) << group;
    // Groups of 5 and more are one group; any other size gives another model.
    if (previous.defined()) {
      EXPECT_EQ(at::allclose(want, previous, 1e-4, 1e-4), group == 7) << group;
    }
    previous = want;
  }
}

TEST(LayerSharing, ABorrowerReadsItsOwnersRows) {
  const c10::InferenceMode inference;
  const Strategy strategy = sharing(2);
  const Gpt2 model(with_shared_layers(odd_weights(), strategy));
  Gpt2Weights changed = odd_weights();
  // Rows of keys and values of a borrower: nothing may depend on them.
  changed.layers[1].qkv_weight.narrow(0, kOdd.n_embd, 2 * kOdd.n_embd).fill_(7.0);
  const Gpt2 other(with_shared_layers(changed, strategy));
  const at::Tensor tokens = random_tokens(1, 9);
  EXPECT_TRUE(at::equal(model.forward(tokens, nullptr, LogitsOf::kEveryToken),
                        other.forward(tokens, nullptr, LogitsOf::kEveryToken)));
}

TEST(LayerSharing, AlignmentTakesTheOwnersQueries) {
  const Gpt2Weights weights = odd_weights();
  const Gpt2Weights own = with_shared_layers(weights, sharing(2));
  const Gpt2Weights aligned = with_shared_layers(weights, sharing(2, QAlignment::kCopy));
  const auto queries = [&](std::size_t layer) { return weights.layers[layer].qkv_weight.narrow(0, 0, 64); };
  EXPECT_TRUE(at::equal(own.layers[3].qkv_weight, queries(3)));
  EXPECT_TRUE(at::equal(aligned.layers[3].qkv_weight, queries(2)));
  EXPECT_TRUE(at::equal(aligned.layers[2].qkv_weight, weights.layers[2].qkv_weight));
  EXPECT_TRUE(at::equal(aligned.layers[4].qkv_weight, weights.layers[4].qkv_weight));       // alone: an owner
  EXPECT_EQ(aligned.layers[3].qkv_bias.data_ptr(), weights.layers[2].qkv_bias.data_ptr());  // no copy
}

TEST(LayerSharing, ParametersAndCacheCountTheOwnersAlone) {
  for (const int group : {1, 2, 3, 7}) {
    const Strategy strategy = sharing(group);
    const Gpt2Weights weights = with_shared_layers(odd_weights(), strategy);
    EXPECT_EQ(weights.byte_size(), 4 * kOdd.parameter_count(strategy)) << group;
    const KvCache cache(kOdd, strategy, 3, 10, at::kFloat);
    EXPECT_EQ(cache.byte_size(), 3 * 10 * kv_bytes_per_token(kOdd, strategy, 4)) << group;
  }
  // Half of 12 layers, codes and scales: 2 * 64 * 4 / 68 = 7.53 times less than every layer in float32.
  const ModelConfig gpt2 = preset_config("gpt2");
  EXPECT_NEAR(static_cast<double>(kv_bytes_per_token(gpt2, cached_baseline(), 4)) /
                  static_cast<double>(kv_bytes_per_token(gpt2, find_version("v4"), 4)),
              7.53, 0.005);
}

TEST(LayerSharing, QuantisedGenerationRunsAndRepeats) {
  const Strategy strategy = sharing(3, QAlignment::kNone, KvCacheDtype::kInt8);
  const Gpt2 model(with_shared_layers(odd_weights(), strategy));
  KvCache cache(kOdd, strategy, 2, 95, at::kFloat);
  Sampler greedy({});
  const at::Tensor prompt = random_tokens(2, 70);  // more than a tile of queries
  const at::Tensor once = generate(model, &cache, prompt, 20, greedy).tokens;
  EXPECT_TRUE(at::equal(generate(model, &cache, prompt, 20, greedy).tokens, once));
}

TEST(LayerSharing, RefusesWhatDoesNotFit) {
  const Gpt2 model(with_shared_layers(odd_weights(), sharing(2)));
  KvCache cache(kOdd, sharing(1), 1, 8, at::kFloat);
  try {
    model.forward(random_tokens(1, 2), &cache, LogitsOf::kLastToken);
    FAIL() << "a cache for groups of 1 was accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "Gpt2::forward: expected a cache for groups of 2 layers, got 1");
  }
  EXPECT_THROW(with_shared_layers(model.weights(), sharing(2)), std::invalid_argument);
  EXPECT_THROW(with_shared_layers(odd_weights(), sharing(0)), std::invalid_argument);
  EXPECT_THROW(with_shared_layers(odd_weights(), sharing(2, QAlignment::kFit)), std::invalid_argument);
}

TEST(LayerSharing, RefusesAGroupOfNoLayers) {
  for (const int group : {0, -2}) {
    try {
      with_shared_layers(odd_weights(), sharing(group));
      FAIL() << "a group of " << group << " layers was accepted";
    } catch (const std::invalid_argument& error) {
      EXPECT_EQ(std::string(error.what()),
                "version test: expected a sharing_group of at least 1 layer, got " + std::to_string(group));
    }
  }
}

}  // namespace
}  // namespace kvfuse
