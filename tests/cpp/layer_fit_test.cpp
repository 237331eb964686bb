// Fitted borrowers: exact where an exact map exists, least squares everywhere else, finite always.
#include "csrc/model/layer_fit.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linalg_lstsq.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "csrc/model/gpt2.h"
#include "csrc/model/layer_sharing.h"

namespace kvfuse {
namespace {

// Five layers: groups of 2 and 3 leave a smaller last one. Head size 16.
constexpr ModelConfig kOdd = {.n_layer = 5, .n_head = 4, .n_embd = 64, .block_size = 96, .vocab_size = 101};
constexpr std::int64_t kHeadDim = kOdd.n_embd / kOdd.n_head;

Strategy fitted(int group) {
  return {.name = "test",
          .description = "",
          .use_cache = true,
          .sharing_group = group,
          .q_alignment = QAlignment::kFit};
}

Strategy unfitted(int group) {
  Strategy strategy = fitted(group);
  strategy.q_alignment = QAlignment::kNone;
  return strategy;
}

// Norms and biases as training leaves them: none is zero or one.
Gpt2Weights rough_weights(bool bias = true) {
  ModelConfig config = kOdd;
  config.bias = bias;
  Gpt2Weights weights = random_weights(config, at::kFloat, 3, 0.2);
  for (LayerWeights& layer : weights.layers)
    for (at::Tensor* tensor : {&layer.ln_1_weight, &layer.ln_1_bias, &layer.qkv_bias, &layer.attn_proj_bias})
      if (tensor->defined()) *tensor = *tensor + 0.3 * at::randn(tensor->sizes());
  return weights;
}

at::Tensor random_tokens(std::int64_t count) {
  return at::randint(0, kOdd.vocab_size, {count}, at::TensorOptions().dtype(at::kLong));
}

at::Tensor logits_of(const Gpt2Weights& weights, const at::Tensor& tokens, KvCache* cache = nullptr) {
  const c10::InferenceMode inference;
  return Gpt2(weights).forward(tokens.unsqueeze(0), cache, LogitsOf::kEveryToken);
}

double largest(const at::Tensor& tensor) { return tensor.abs().max().item<double>(); }

// Rows of queries (0), keys (1) or values (2) of one head in a fused projection's weight or bias.
at::Tensor head_rows(const at::Tensor& qkv, std::int64_t part, std::int64_t head) {
  return qkv.narrow(0, part * kOdd.n_embd + head * kHeadDim, kHeadDim);
}

TEST(LayerFit, IsExactWhereTheBorrowersRowsAreAMapOfTheOwners) {
  for (const bool bias : {true, false}) {
    Gpt2Weights weights = rough_weights(bias);
    for (const std::size_t i : {0U, 2U}) {
      LayerWeights& owner = weights.layers[i];
      LayerWeights& borrower = weights.layers[i + 1];
      // The owner adds nothing, so that both layers read the same.
      for (at::Tensor* tensor :
           {&owner.attn_proj_weight, &owner.attn_proj_bias, &owner.mlp_proj_weight, &owner.mlp_proj_bias})
        if (tensor->defined()) tensor->zero_();
      borrower.ln_1_weight = owner.ln_1_weight;
      borrower.ln_1_bias = owner.ln_1_bias;
      for (const std::int64_t part : {1, 2})
        for (std::int64_t head = 0; head < kOdd.n_head; ++head) {
          const at::Tensor map = at::eye(kHeadDim) + 0.1 * at::randn({kHeadDim, kHeadDim});
          head_rows(borrower.qkv_weight, part, head)
              .copy_(at::matmul(map, head_rows(owner.qkv_weight, part, head)));
        }
    }
    const FittedLayers fit = fit_shared_layers(weights, fitted(2), random_tokens(400));
    ASSERT_EQ(fit.fits.size(), 2U);
    for (const LayerFit& layer : fit.fits) {
      EXPECT_LT(layer.k_error, 1e-4);
      EXPECT_LT(layer.v_error, 1e-4);
    }
    const at::Tensor tokens = random_tokens(50);
    const at::Tensor want = logits_of(weights, tokens);
    const auto error_of = [&](const at::Tensor& logits) { return largest(logits - want) / largest(want); };
    EXPECT_TRUE(error_of(logits_of(fit.weights, tokens)) <= 1e-4) << bias;
    KvCache cache(fit.weights.config, fitted(2), 1, 50, at::kFloat);
    EXPECT_TRUE(error_of(logits_of(fit.weights, tokens, &cache)) <= 1e-4) << bias;
    EXPECT_GT(error_of(logits_of(with_shared_layers(weights, unfitted(2)), tokens)), 0.01) << bias;
  }
}

// Keys and values of every layer as [n_head, T, head_dim] each, in float64, by PyTorch's operators alone.
std::vector<std::array<at::Tensor, 2>> rows_by_torch(const Gpt2Weights& weights, const at::Tensor& tokens) {
  const auto wide = [](const at::Tensor& tensor) { return tensor.to(at::kDouble); };
  const auto norm = [&](const at::Tensor& x, const at::Tensor& gain, const at::Tensor& shift) {
    return at::layer_norm(x, {kOdd.n_embd}, wide(gain), wide(shift), 1e-5);
  };
  at::Tensor x = at::embedding(wide(weights.token_embedding), tokens) +
                 wide(weights.position_embedding).narrow(0, 0, tokens.numel());
  std::vector<std::array<at::Tensor, 2>> rows;
  for (const LayerWeights& w : weights.layers) {
    const at::Tensor qkv =
        at::linear(norm(x, w.ln_1_weight, w.ln_1_bias), wide(w.qkv_weight), wide(w.qkv_bias))
            .view({-1, 3, kOdd.n_head, kHeadDim})
            .permute({1, 2, 0, 3});
    rows.push_back({qkv[1], qkv[2]});
    const at::Tensor seen = at::scaled_dot_product_attention(
        qkv.narrow(0, 0, 1), qkv.narrow(0, 1, 1), qkv.narrow(0, 2, 1), {}, 0.0, /*is_causal=*/true)[0];
    x = x + at::linear(seen.transpose(0, 1).reshape({-1, kOdd.n_embd}), wide(w.attn_proj_weight),
                       wide(w.attn_proj_bias));
    const at::Tensor wider =
        at::linear(norm(x, w.ln_2_weight, w.ln_2_bias), wide(w.fc_weight), wide(w.fc_bias));
    x = x + at::linear(at::gelu(wider, "tanh"), wide(w.mlp_proj_weight), wide(w.mlp_proj_bias));
  }
  return rows;
}

struct LeastSquares {
  at::Tensor map;     // [head_dim, head_dim]
  at::Tensor offset;  // [head_dim]
  double left, total;
};

LeastSquares least_squares(const at::Tensor& owner, const at::Tensor& borrower) {
  const at::Tensor with_one = at::cat({owner, at::ones({owner.size(0), 1}, at::kDouble)}, 1);
  const at::Tensor solution = std::get<0>(at::linalg_lstsq(with_one, borrower));
  return {solution.narrow(0, 0, kHeadDim), solution[kHeadDim],
          (borrower - at::matmul(with_one, solution)).square().sum().item<double>(),
          (borrower - borrower.mean(0)).square().sum().item<double>()};
}

TEST(LayerFit, IsTheLeastSquaresSolution) {
  const Gpt2Weights weights = rough_weights();
  const at::Tensor tokens = random_tokens(200);  // windows of 96, 96 and 8
  const FittedLayers fit = fit_shared_layers(weights, fitted(3), tokens);
  std::vector<std::vector<std::array<at::Tensor, 2>>> windows;
  for (std::int64_t first = 0; first < 200; first += 96)
    windows.push_back(
        rows_by_torch(weights, tokens.narrow(0, first, std::min<std::int64_t>(96, 200 - first))));
  for (const LayerFit& layer : fit.fits) {
    const auto rows = [&](std::int64_t of, std::size_t part, std::int64_t head) {
      std::vector<at::Tensor> all;
      for (const auto& window : windows) all.push_back(window[static_cast<std::size_t>(of)][part][head]);
      return at::cat(all);
    };
    const LayerWeights& before = weights.layers[static_cast<std::size_t>(layer.layer)];
    const LayerWeights& after = fit.weights.layers[static_cast<std::size_t>(layer.layer)];
    at::Tensor output_bias = before.attn_proj_bias.to(at::kDouble);
    std::array<double, 2> left{}, total{};
    const auto expect_near = [&](const at::Tensor& got, const at::Tensor& want, const char* what) {
      EXPECT_TRUE(largest(got - want) <= 1e-3 * largest(want)) << what << " of layer " << layer.layer;
    };
    for (std::int64_t head = 0; head < kOdd.n_head; ++head) {
      const auto solve = [&](std::size_t part) {
        const LeastSquares solved =
            least_squares(rows(layer.owner, part, head), rows(layer.layer, part, head));
        left[part] += solved.left;
        total[part] += solved.total;
        return solved;
      };
      const at::Tensor keys = solve(0).map;
      const LeastSquares values = solve(1);
      const auto queries = [&](const at::Tensor& qkv) { return head_rows(qkv, 0, head).to(at::kDouble); };
      expect_near(queries(after.qkv_weight), at::matmul(keys, queries(before.qkv_weight)), "query weight");
      expect_near(queries(after.qkv_bias), at::matmul(keys, queries(before.qkv_bias)), "query bias");
      const auto output = [&](const LayerWeights& w) {
        return w.attn_proj_weight.narrow(1, head * kHeadDim, kHeadDim).to(at::kDouble);
      };
      expect_near(output(after), at::matmul(output(before), values.map.t()), "output weight");
      output_bias = output_bias + at::matmul(output(before), values.offset);
    }
    expect_near(after.attn_proj_bias, output_bias, "output bias");
    EXPECT_NEAR(layer.k_error, std::sqrt(left[0] / total[0]), 1e-4);
    EXPECT_NEAR(layer.v_error, std::sqrt(left[1] / total[1]), 1e-4);
  }
}

TEST(LayerFit, AnyGroupSizeFitsEveryBorrowerToItsOwner) {
  const Gpt2Weights weights = rough_weights();
  const at::Tensor tokens = random_tokens(40);
  using Pairs = std::vector<std::pair<std::int64_t, std::int64_t>>;
  const std::vector<std::pair<int, Pairs>> cases = {
      {1, {}}, {2, {{1, 0}, {3, 2}}}, {3, {{1, 0}, {2, 0}, {4, 3}}}, {7, {{1, 0}, {2, 0}, {3, 0}, {4, 0}}}};
  for (const auto& [group, pairs] : cases) {
    const FittedLayers fit = fit_shared_layers(weights, fitted(group), random_tokens(300));
    Pairs got;
    for (const LayerFit& layer : fit.fits) got.emplace_back(layer.layer, layer.owner);
    EXPECT_EQ(got, pairs) << group;
    EXPECT_EQ(fit.weights.byte_size(), 4 * kOdd.parameter_count(fitted(group))) << group;
    KvCache cache(kOdd, fitted(group), 1, 40, at::kFloat);
    const at::Tensor want = logits_of(fit.weights, tokens);
    EXPECT_TRUE(largest(logits_of(fit.weights, tokens, &cache) - want) <= 1e-4 * largest(want)) << group;
  }
}

TEST(LayerFit, StaysFiniteWhereTheOwnersRowsSpanLess) {
  Gpt2Weights weights = rough_weights();
  LayerWeights& owner = weights.layers[0];
  for (const std::int64_t part : {1, 2}) {
    // Head 0 says nothing, head 1 the same in every channel.
    head_rows(owner.qkv_weight, part, 0).zero_();
    head_rows(owner.qkv_bias, part, 0).zero_();
    head_rows(owner.qkv_weight, part, 1)
        .copy_(head_rows(owner.qkv_weight, part, 1)[0].expand({kHeadDim, -1}));
  }
  for (const std::int64_t count : {1L, 5L, 400L}) {  // fewer than head_dim too
    const FittedLayers fit = fit_shared_layers(weights, fitted(2), random_tokens(count));
    for (const LayerFit& layer : fit.fits)
      EXPECT_TRUE(layer.k_error <= 1.0 && layer.v_error <= 1.0) << layer.k_error << " " << layer.v_error;
    const double size = largest(logits_of(fit.weights, random_tokens(20)));
    EXPECT_TRUE(size <= 100 * largest(logits_of(weights, random_tokens(20)))) << size;
  }
}

TEST(LayerFit, RefusesWhatCannotBeFitted) {
  Gpt2Weights weights = rough_weights();
  EXPECT_THROW(fit_shared_layers(weights, fitted(2), random_tokens(0)), std::invalid_argument);
  EXPECT_THROW(fit_shared_layers(weights, fitted(0), random_tokens(9)), std::invalid_argument);
  weights.layers[1].qkv_weight[kOdd.n_embd].fill_(std::numeric_limits<float>::quiet_NaN());
  try {
    fit_shared_layers(weights, fitted(2), random_tokens(99));
    FAIL() << "keys that are NaN were fitted";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "fit_shared_layers: expected finite keys and values on the calibration tokens, got NaN or "
                 "infinity (are the weights damaged?)");
  }
}

}  // namespace
}  // namespace kvfuse
