// Shapes, cache, model and memory figures on models small enough to run in moments.
#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "benchmark/limits.h"
#include "benchmark/memory.h"
#include "csrc/model/generate.h"
#include "csrc/model/layer_fit.h"
#include "csrc/model/layer_sharing.h"
#include "csrc/versions/registry.h"
#include "tests/cpp/error_of.h"

namespace kvfuse {
namespace {

constexpr ModelConfig kSmall = {
    .n_layer = 3, .n_head = 4, .n_embd = 64, .block_size = 192, .vocab_size = 211};

// Wide enough for greedy output to vary.
Gpt2 small_model() { return Gpt2(random_weights(kSmall, at::kFloat, 7, 0.2)); }

at::Tensor random_tokens(std::int64_t batch, std::int64_t length) {
  return at::randint(0, kSmall.vocab_size, {batch, length}, at::TensorOptions().dtype(at::kLong));
}

KvCache make_cache(const char* version, std::int64_t batch = 1, std::int64_t capacity = kSmall.block_size) {
  return KvCache(kSmall, find_version(version), batch, capacity, at::kFloat);
}

TEST(ModelConfig, PublishedSizes) {
  EXPECT_EQ(preset_config("gpt2").parameter_count(), 124439808);
  EXPECT_EQ(preset_config("gpt2-medium").parameter_count(), 354823168);
  EXPECT_EQ(preset_config("gpt2-large").parameter_count(), 774030080);
  EXPECT_EQ(preset_config("gpt2-xl").parameter_count(), 1557611200);
  EXPECT_EQ(error_of([] { preset_config("gpt3"); }),
            "unknown model \"gpt3\" (known: gpt2, gpt2-medium, gpt2-large, gpt2-xl)");
}

TEST(ModelConfig, CountsWhatTheWeightsHold) {
  for (const bool bias : {true, false}) {
    ModelConfig config = kSmall;
    config.bias = bias;
    EXPECT_EQ(random_weights(config, at::kFloat, 1).byte_size(), config.parameter_count() * 4);
  }
}

TEST(ModelConfig, RefusesWhatCannotBe) {
  ModelConfig odd = kSmall;
  odd.n_head = 3;
  EXPECT_EQ(error_of([&] { check_model_config(odd); }),
            "model_config: expected n_embd to be a multiple of n_head, got n_embd 64 and n_head 3");
  ModelConfig none = kSmall;
  none.n_layer = 0;
  EXPECT_EQ(error_of([&] { check_model_config(none); }),
            "model_config: expected 1 <= n_layer <= 1024, got 0");
  ModelConfig wet = kSmall;
  wet.dropout = 1.0;
  EXPECT_NE(error_of([&] { check_model_config(wet); }).find("dropout"), std::string::npos);
}

TEST(Versions, UnknownNameListsTheKnown) {
  EXPECT_EQ(error_of([] { find_version("v9"); }),
            "unknown version \"v9\" (known: v0, v1, v2, v3, v4, v3a, v4a, v3f, v4f, v1w8, v2w8, v4w8, v2w4)");
  EXPECT_FALSE(uncached_baseline().use_cache);
  EXPECT_TRUE(cached_baseline().use_cache);
  EXPECT_EQ(cached_baseline().kv_cache_dtype, KvCacheDtype::kModel);
}

TEST(KvCache, BytesFollowTheFormula) {
  const ModelConfig gpt2 = preset_config("gpt2");
  for (const Strategy& version : versions()) {
    if (!version.use_cache) continue;
    const KvCache cache(gpt2, version, 2, 100, at::kFloat);
    EXPECT_EQ(cache.byte_size(), 2 * 100 * kv_bytes_per_token(gpt2, version, 4)) << version.name;
  }
  // 64 floats against 64 codes and a float: 256 / 68
  EXPECT_NEAR(static_cast<double>(kv_bytes_per_token(gpt2, find_version("v1"), 4)) /
                  static_cast<double>(kv_bytes_per_token(gpt2, find_version("v2"), 4)),
              3.76, 0.01);
  EXPECT_EQ(kv_bytes_per_token(gpt2, find_version("v0"), 4), 0);
}

// Together they are large enough for 2 MiB pages; so are those of a copy with another capacity.
TEST(KvCache, LayersLieOneBehindTheOther) {
  for (const KvCache& cache : {make_cache("v2", 2, 10), make_cache("v2", 2, 10).make_empty(1, 7)})
    for (const auto& part : {&KvCacheLayer::k, &KvCacheLayer::v}) {
      const at::Tensor &first = cache.layer(0).*part, &second = cache.layer(1).*part;
      EXPECT_EQ(static_cast<const std::int8_t*>(second.const_data_ptr()) -
                    static_cast<const std::int8_t*>(first.const_data_ptr()),
                2 * first.numel());
      EXPECT_TRUE(first.is_contiguous());
    }
}

TEST(KvCache, GuardsItsLength) {
  KvCache cache = make_cache("v1", 2, 10);
  cache.advance(7);
  EXPECT_EQ(error_of([&] { cache.advance(4); }), "KvCache: expected length 7 + 4 <= capacity 10");
  EXPECT_EQ(cache.length(), 7);
  cache.crop(3);
  EXPECT_TRUE(at::equal(cache.cache_seqlens(), at::full({2}, 3, at::TensorOptions().dtype(at::kInt))));
  EXPECT_EQ(error_of([&] { cache.crop(4); }), "KvCache: expected 0 <= length <= 3 to crop to, got 4");
  cache.reset();
  EXPECT_EQ(cache.length(), 0);
}

TEST(KvCache, RefusesWhatCannotBe) {
  EXPECT_EQ(error_of([] { make_cache("v0"); }), "KvCache: version v0 keeps no cache");
  EXPECT_EQ(error_of([] { make_cache("v1", 0); }), "KvCache: expected batch >= 1, got 0");
  EXPECT_EQ(error_of([] { make_cache("v1", 1, 193); }),
            "KvCache: expected 1 <= capacity <= block_size 192, got 193");
}

TEST(Gpt2, CachedLogitsAreTheUncachedOnes) {
  const c10::InferenceMode inference;
  const Gpt2 model = small_model();
  const at::Tensor tokens = random_tokens(3, 40);
  const at::Tensor want = model.forward(tokens, nullptr, LogitsOf::kEveryToken);
  KvCache cache = make_cache("v1", 3);
  // A prompt, single tokens, then several at once.
  at::Tensor got = model.forward(tokens.narrow(1, 0, 17), &cache, LogitsOf::kEveryToken);
  for (std::int64_t t = 17; t < 30; ++t)
    got = at::cat({got, model.forward(tokens.narrow(1, t, 1), &cache, LogitsOf::kEveryToken)}, 1);
  got = at::cat({got, model.forward(tokens.narrow(1, 30, 10), &cache, LogitsOf::kEveryToken)}, 1);
  EXPECT_TRUE(at::allclose(got, want, 1e-4, 1e-4)) << (got - want).abs().max().item<float>();
}

TEST(Gpt2, Int8CacheIsCloseAndNotEqual) {
  const c10::InferenceMode inference;
  const Gpt2 model = small_model();
  const at::Tensor tokens = random_tokens(2, 64);
  KvCache exact = make_cache("v1", 2);
  KvCache quantised = make_cache("v2", 2);
  const at::Tensor want = model.forward(tokens, &exact, LogitsOf::kEveryToken);
  const at::Tensor got = model.forward(tokens, &quantised, LogitsOf::kEveryToken);
  const float spread = want.std().item<float>();
  const float error = (got - want).pow(2).mean().sqrt().item<float>();
  EXPECT_GT(error, 0.0F);
  EXPECT_LT(error, 0.02F * spread);
}

TEST(Gpt2, GreedyTokensAreTheSameWithAndWithoutCache) {
  const Gpt2 model = small_model();
  const at::Tensor prompts = random_tokens(64, 16);
  Sampler greedy({});
  const at::Tensor uncached = generate(model, nullptr, prompts, 128, greedy).tokens;
  KvCache cache = make_cache("v1", 64);
  EXPECT_TRUE(at::equal(generate(model, &cache, prompts, 128, greedy).tokens, uncached));
  EXPECT_TRUE(
      at::equal(generate(model, &cache, prompts, 128, greedy).tokens, uncached));  // the cache starts over
}

TEST(Gpt2, RepeatsBitForBit) {
  const c10::InferenceMode inference;
  const Gpt2 model = small_model();
  const at::Tensor tokens = random_tokens(2, 50);
  at::Tensor first;
  for (int i = 0; i < 5; ++i) {
    KvCache cache = make_cache("v2", 2);
    model.forward(tokens.narrow(1, 0, 49), &cache, LogitsOf::kLastToken);
    const at::Tensor logits = model.forward(tokens.narrow(1, 49, 1), &cache, LogitsOf::kLastToken);
    if (i == 0) first = logits;
    EXPECT_TRUE(at::equal(logits, first));
  }
}

TEST(Gpt2, RefusesTokensThatDoNotFit) {
  const Gpt2 model = small_model();
  EXPECT_EQ(error_of([&] { model.forward(random_tokens(1, 193), nullptr, LogitsOf::kLastToken); }),
            "Gpt2::forward: expected at most block_size 192 tokens, got 193");
  KvCache cache = make_cache("v1", 1, 8);
  EXPECT_EQ(error_of([&] { model.forward(random_tokens(1, 9), &cache, LogitsOf::kLastToken); }),
            "Gpt2::forward: expected at most the cache's capacity of 8 tokens, got 9");
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(error_of([&] { model.forward(random_tokens(2, 1), &cache, LogitsOf::kLastToken); }),
            "Gpt2::forward: expected the cache's batch 1, got 2");
  EXPECT_NE(error_of([&] {
              model.forward(at::zeros({1, 4}), nullptr, LogitsOf::kLastToken);
            }).find("int64"),
            std::string::npos);
  Sampler greedy({});
  EXPECT_EQ(error_of([&] { generate(model, nullptr, random_tokens(1, 100), 93, greedy); }),
            "generate: expected prompt + new tokens <= block_size 192, got 100 + 93");
}

TEST(Gpt2, HalfPrecisionRunsEveryVersion) {
  const c10::InferenceMode inference;
  const at::Tensor tokens = random_tokens(1, 12);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf})
    for (const Strategy& version : versions()) {
      const auto model_in = [&](at::ScalarType type) {
        const Gpt2Weights weights = random_weights(kSmall, type, 7, 0.2);
        return Gpt2(version.q_alignment == QAlignment::kFit
                        ? fit_shared_layers(weights, version, tokens.view({-1})).weights
                        : with_shared_layers(weights, version));
      };
      const at::Tensor want = model_in(at::kFloat).forward(tokens, nullptr, LogitsOf::kLastToken);
      std::optional<KvCache> cache;
      if (version.use_cache) cache.emplace(kSmall, version, 1, 12, dtype);
      const at::Tensor got = model_in(dtype).forward(tokens, cache ? &*cache : nullptr, LogitsOf::kLastToken);
      EXPECT_EQ(got.scalar_type(), dtype);
      EXPECT_LT((got.to(at::kFloat) - want).abs().mean().item<float>(), 0.1F * want.std().item<float>());
    }
}

TEST(Gpt2, GenerationStopsWhenAsked) {
  const Gpt2 model = small_model();
  Sampler greedy({});
  int count = 0;
  EXPECT_EQ(generate(model, nullptr, random_tokens(1, 4), 50, greedy,
                     {.on_token = [&](const at::Tensor&) { return ++count < 3; }})
                .tokens.size(1),
            7);
}

TEST(Memory, CountsExactlyAndKeepsTheBudget) {
  bench::install_counting_allocator(1 << 20);
  const std::int64_t before = bench::memory_figures().current_bytes;
  bench::reset_peak_memory();
  {
    const at::Tensor kept = at::zeros({1000});
    EXPECT_EQ(bench::memory_figures().current_bytes - before, 4000);
  }
  EXPECT_EQ(bench::memory_figures().current_bytes, before);
  EXPECT_EQ(bench::memory_figures().peak_bytes - before, 4000);
  for (int i = 0; i < 20; ++i) EXPECT_THROW(at::zeros({1 << 19}), c10::OutOfMemoryError);
  EXPECT_EQ(bench::memory_figures().current_bytes, before);
  bench::install_counting_allocator({});
}

TEST(Limits, ArePositiveAndTheBetterOneWins) {
  const roofline::MachineLimits limits = bench::measure_limits(at::kFloat, at::kCPU);
  EXPECT_GT(limits.read_bytes_per_s, 1e8);
  EXPECT_GT(limits.matmul_flops_per_s, 1e8);
  for (const WeightDtype weights : {WeightDtype::kInt8, WeightDtype::kInt4})
    EXPECT_GT(bench::measure_code_products(at::kFloat, weights), 1e8);
  const roofline::MachineLimits better = bench::better_of({1.0, 4.0}, {2.0, 3.0});
  EXPECT_EQ(better.read_bytes_per_s, 2.0);
  EXPECT_EQ(better.matmul_flops_per_s, 4.0);
}

}  // namespace
}  // namespace kvfuse
