// What the tests of several sequences at a time share: a small model for every version, batches of sequences
// that differ in length, and what sequences alone are compared by.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "csrc/model/generate.h"
#include "csrc/model/prepared_weights.h"
#include "csrc/versions/registry.h"

namespace kvfuse {

inline constexpr ModelConfig kModel = {
    .n_layer = 5, .n_head = 4, .n_embd = 64, .block_size = 64, .vocab_size = 211};

// A registry row, or one with groups that do not divide the layers.
struct Case {
  std::string name;
  Strategy strategy;
};

inline std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Strategy& version : versions()) all.push_back({std::string(version.name), version});
  for (const KvCacheDtype dtype : {KvCacheDtype::kModel, KvCacheDtype::kInt8})
    for (const int group : {3, 5})
      all.push_back(
          {(dtype == KvCacheDtype::kInt8 ? "int8_groups_of_" : "groups_of_") + std::to_string(group),
           {.name = "g",
            .description = "",
            .use_cache = true,
            .kv_cache_dtype = dtype,
            .sharing_group = group}});
  return all;
}

inline at::Tensor random_row(std::int64_t length) {
  return at::randint(0, kModel.vocab_size, {1, length}, at::TensorOptions().dtype(at::kLong));
}

// Wide enough for greedy output to vary.
inline Gpt2 model_of(const Strategy& strategy) {
  const Gpt2Weights weights = random_weights(kModel, at::kFloat, 7, 0.2);
  return Gpt2(prepare_weights(weights, strategy, {}, random_row(512)[0]).weights);
}

class Sequences : public testing::TestWithParam<Case> {
 protected:
  const Strategy& strategy() const { return GetParam().strategy; }
  bool is_int8() const { return strategy().kv_cache_dtype == KvCacheDtype::kInt8; }
  bool has_codes_for_weights() const { return strategy().weight_dtype != WeightDtype::kModel; }
  // How far products of other shapes may be off, as a share of the largest. Beside codes of weights
  // activations are rounded, and a little sends one to the next step.
  double rounding_of_products() const {
    return !has_codes_for_weights() ? 1e-5 : strategy().weight_dtype == WeightDtype::kInt4 ? 5e-2 : 1e-3;
  }
  const Gpt2 model_ = model_of(GetParam().strategy);
  const c10::InferenceMode inference_;

  std::optional<KvCache> cache(std::int64_t batch, std::int64_t capacity = kModel.block_size) const {
    if (!strategy().use_cache) return std::nullopt;
    return KvCache(kModel, strategy(), batch, capacity, at::kFloat);
  }

  // How far logits of `row` may be off, as a share of the largest, where the matrix products have another
  // shape and so round differently. That moves an int8 code now and then, and all behind it follows: never by
  // more than rounding to 8 bits moves them.
  double relative(const at::Tensor& row) const {
    if (!is_int8()) return rounding_of_products();
    Strategy unrounded = strategy();
    unrounded.kv_cache_dtype = KvCacheDtype::kModel;
    KvCache rounding = *cache(1), exact(kModel, unrounded, 1, kModel.block_size, at::kFloat);
    const at::Tensor want = model_.forward(row, &exact, LogitsOf::kEveryToken);
    const at::Tensor got = model_.forward(row, &rounding, LogitsOf::kEveryToken);
    const double of_cache = ((got - want).abs().max() / want.abs().max()).item<double>();
    return has_codes_for_weights() ? of_cache + rounding_of_products() : of_cache;
  }

  // The prompts run with nothing but one-token sequences beside each: all matrix products have the shape that
  // they have for the whole batch, so that nothing may differ by a bit.
  void expect_neighbours_do_not_matter(const std::vector<at::Tensor>& rows, std::int64_t new_tokens,
                                       const GenerateOptions& options) const;
};

inline KvCache* held(std::optional<KvCache>& cache) { return cache ? &*cache : nullptr; }

// Rows of different lengths, `padding` (random ids if negative) behind the shorter ones, at least `width`
// wide.
inline TokenBatch padded(const std::vector<at::Tensor>& rows, std::int64_t padding, std::int64_t width = 0) {
  std::int64_t longest = width;
  for (const at::Tensor& row : rows) longest = std::max(longest, row.size(1));
  std::vector<at::Tensor> filled;
  std::vector<std::int64_t> lengths;
  for (const at::Tensor& row : rows) {
    const std::int64_t missing = longest - row.size(1);
    filled.push_back(
        at::cat({row, padding < 0 ? random_row(missing) : at::full({1, missing}, padding, at::kLong)}, 1));
    lengths.push_back(row.size(1));
  }
  return {at::cat(filled), lengths};
}

inline testing::AssertionResult close(const at::Tensor& got, const at::Tensor& want, double relative) {
  if (got.sizes() != want.sizes())
    return testing::AssertionFailure() << got.sizes() << " for " << want.sizes();
  const double error = (got - want).abs().max().item<double>();
  const double scale = want.abs().max().item<double>();
  if (error <= relative * scale) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "off by " << error << " of " << scale;
}

inline void Sequences::expect_neighbours_do_not_matter(const std::vector<at::Tensor>& rows,
                                                       std::int64_t new_tokens,
                                                       const GenerateOptions& options) const {
  const auto batch = static_cast<std::int64_t>(rows.size());
  std::optional<KvCache> together = cache(batch);
  Sampler greedy({});  // refuses what is not finite
  const TokenBatch prompt = padded(rows, -1);
  const TokenBatch got = generate(model_, held(together), prompt, new_tokens, greedy, options);
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto index = static_cast<std::size_t>(b);
    std::vector<at::Tensor> apart;
    for (std::int64_t i = 0; i < batch; ++i) apart.push_back(i == b ? rows[index] : random_row(1));
    std::optional<KvCache> own = cache(batch);
    const TokenBatch want =
        generate(model_, held(own), padded(apart, -1, prompt.tokens.size(1)), new_tokens, greedy, options);
    ASSERT_EQ(got.lengths[index], rows[index].size(1) + new_tokens);
    const auto tokens = [&](const TokenBatch& of) { return of.tokens[b].narrow(0, 0, got.lengths[index]); };
    EXPECT_TRUE(at::equal(tokens(got), tokens(want))) << "sequence " << b;
    if (!own) continue;
    ASSERT_EQ(together->lengths()[index], own->lengths()[index]);
    for (std::int64_t layer = 0; layer < kModel.n_layer; layer += own->sharing_group()) {
      const auto same = [&](const at::Tensor& x, const at::Tensor& y) {
        return at::equal(x[b].narrow(1, 0, own->lengths()[index]), y[b].narrow(1, 0, own->lengths()[index]));
      };
      const KvCacheLayer &x = together->layer(layer), &y = own->layer(layer);
      EXPECT_TRUE(same(x.k, y.k) && same(x.v, y.v)) << "sequence " << b << ", layer " << layer;
      const bool same_scales = !x.k_scale || (same(*x.k_scale, *y.k_scale) && same(*x.v_scale, *y.v_scale));
      EXPECT_TRUE(same_scales) << "sequence " << b << ", layer " << layer;
    }
  }
}

}  // namespace kvfuse
