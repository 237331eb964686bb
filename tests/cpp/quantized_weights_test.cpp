// Weights as codes: against the same values in floating point.
#include "csrc/model/quantized_weights.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/reference/gpt2_step.h"
#include "tests/cpp/error_of.h"
#include "tests/cpp/sequences_fixture.h"

namespace kvfuse {
namespace {

const Strategy& int8_weights() { return find_version("v1w8"); }

// What codes stand for, by kernels/weight_format.h, in operations of PyTorch.
at::Tensor dequantized(const at::Tensor& codes, const at::Tensor& scale, at::ScalarType dtype) {
  if (codes.scalar_type() == at::kChar) return codes.to(dtype) * scale.to(dtype).unsqueeze(1);
  const at::Tensor groups = codes.view({codes.size(0), -1, 16}).to(at::kInt);
  const at::Tensor values = at::cat({groups.bitwise_and(15), groups.bitwise_right_shift(4)}, 2) - 8;
  return (values.to(dtype) * scale.to(dtype).unsqueeze(2)).reshape({codes.size(0), -1});
}

Gpt2Weights wide_weights() { return random_weights(kModel, at::kFloat, 7, 0.2); }

TEST(QuantizedWeights, AreWithinHalfAStep) {
  const Gpt2Weights own = wide_weights();
  const Gpt2Weights coded = with_quantized_linears(own, WeightDtype::kInt8);
  const auto check = [](const at::Tensor& want, const at::Tensor& codes, const at::Tensor& scale) {
    ASSERT_EQ(codes.scalar_type(), at::kChar);
    ASSERT_EQ(scale.sizes(), want.sizes().slice(0, 1));
    const at::Tensor error = (dequantized(codes, scale, at::kDouble) - want).abs();
    // Dividing by the scale rounds by up to 127 * 2^-24 of a step.
    EXPECT_TRUE((error <= scale.unsqueeze(1) * 0.50001).all().item<bool>());
    // The largest of a row is a code of 127.
    EXPECT_TRUE(std::get<0>(codes.abs().max(1)).eq(127).all().item<bool>());
  };
  check(own.token_embedding, coded.token_embedding, coded.token_embedding_scale);
  for (std::size_t i = 0; i < own.layers.size(); ++i) {
    const LayerWeights &want = own.layers[i], &got = coded.layers[i];
    check(want.qkv_weight, got.qkv_weight, got.qkv_scale);
    check(want.attn_proj_weight, got.attn_proj_weight, got.attn_proj_scale);
    check(want.fc_weight, got.fc_weight, got.fc_scale);
    check(want.mlp_proj_weight, got.mlp_proj_weight, got.mlp_proj_scale);
    EXPECT_TRUE(at::equal(want.qkv_bias, got.qkv_bias));
  }
}

// What is predicted of memory and of a step's bytes, without making the weights.
TEST(QuantizedWeights, TakeTheBytesThatTheConfigurationSays) {
  for (const bool bias : {false, true})
    for (const Strategy& version : versions()) {
      ModelConfig config = kModel;
      config.bias = bias;
      const Gpt2Weights weights =
          prepare_weights(random_weights(config, at::kHalf, 7), version, {}, random_row(512)[0]).weights;
      EXPECT_EQ(weights.byte_size(), config.weight_bytes(version, 2) + config.block_size * config.n_embd * 2)
          << version.name;
    }
}

std::vector<double> doubles(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kDouble).contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

// A model of codes in double precision: what the codes stand for, and activations rounded as beside them.
reference::Gpt2 twin_of(const Gpt2Weights& coded) {
  const auto values = [](const at::Tensor& codes, const at::Tensor& scale) {
    return doubles(dequantized(codes, scale, at::kDouble));
  };
  reference::Gpt2 twin{.n_embd = static_cast<std::size_t>(kModel.n_embd),
                       .n_head = static_cast<std::size_t>(kModel.n_head),
                       .gelu_tanh = coded.gelu_tanh,
                       .int8_layers = coded.weight_dtype() == WeightDtype::kInt8,
                       .int8_head = true,
                       .token_embedding = values(coded.token_embedding, coded.token_embedding_scale),
                       .position_embedding = doubles(coded.position_embedding),
                       .layers = {},
                       .ln_f_weight = doubles(coded.ln_f_weight),
                       .ln_f_bias = doubles(coded.ln_f_bias)};
  for (const LayerWeights& layer : coded.layers)
    twin.layers.push_back({.ln_1_weight = doubles(layer.ln_1_weight),
                           .ln_1_bias = doubles(layer.ln_1_bias),
                           .qkv_weight = values(layer.qkv_weight, layer.qkv_scale),
                           .qkv_bias = doubles(layer.qkv_bias),
                           .attn_proj_weight = values(layer.attn_proj_weight, layer.attn_proj_scale),
                           .attn_proj_bias = doubles(layer.attn_proj_bias),
                           .ln_2_weight = doubles(layer.ln_2_weight),
                           .ln_2_bias = doubles(layer.ln_2_bias),
                           .fc_weight = values(layer.fc_weight, layer.fc_scale),
                           .fc_bias = doubles(layer.fc_bias),
                           .mlp_proj_weight = values(layer.mlp_proj_weight, layer.mlp_proj_scale),
                           .mlp_proj_bias = doubles(layer.mlp_proj_bias),
                           .cache_layer = twin.layers.size()});
  return twin;
}

void expect_logits_of_values(WeightDtype dtype, double allowed) {
  const c10::InferenceMode inference;
  const Gpt2 coded(with_quantized_linears(wide_weights(), dtype));
  const reference::Gpt2 twin = twin_of(coded.weights());
  std::vector<reference::Gpt2::Caches> twin_caches(2, reference::Gpt2::Caches(twin.layers.size()));
  KvCache cache(kModel, int8_weights(), 2, 64, at::kFloat);
  for (const std::int64_t tokens : {9, 1, 1, 1}) {
    const at::Tensor rows =
        at::randint(0, kModel.vocab_size, {2, tokens}, at::TensorOptions().dtype(at::kLong));
    const at::Tensor logits = coded.forward(rows, &cache, LogitsOf::kLastToken);
    for (std::size_t b = 0; b < twin_caches.size(); ++b) {
      const at::Tensor sequence = rows[static_cast<std::int64_t>(b)];
      std::vector<double> want;
      for (std::int64_t t = 0; t < tokens; ++t)
        want = twin.step(sequence[t].item<std::int64_t>(), twin_caches[b]);
      const at::Tensor found = logits[static_cast<std::int64_t>(b)].flatten();
      EXPECT_TRUE(close(found.to(at::kDouble), at::tensor(want, at::kDouble), allowed));
    }
  }
}

TEST(QuantizedWeights, GiveTheLogitsOfTheValuesTheyStandFor) {
  expect_logits_of_values(WeightDtype::kInt8, 1e-3);
  expect_logits_of_values(WeightDtype::kInt4, 5e-2);  // the twin does not round to 8 bits beside 4-bit codes
}

TEST(QuantizedWeights, ARowOfZerosStaysZero) {
  Gpt2Weights weights = wide_weights();
  weights.layers[1].fc_weight[3].zero_();
  const Gpt2Weights coded = with_quantized_linears(weights, WeightDtype::kInt8);
  EXPECT_TRUE(coded.layers[1].fc_weight[3].eq(0).all().item<bool>());
  EXPECT_EQ(dequantized(coded.layers[1].fc_weight, coded.layers[1].fc_scale, at::kFloat)[3]
                .abs()
                .sum()
                .item<float>(),
            0);
}

TEST(QuantizedWeightsErrors, ValuesThatHaveNoCode) {
  for (const float damage :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Gpt2Weights weights = wide_weights();
    weights.layers[2].attn_proj_weight[1][2] = damage;
    const std::string error = error_of([&] { with_quantized_linears(weights, WeightDtype::kInt8); });
    EXPECT_NE(error.find("attn.c_proj"), std::string::npos) << error;
    EXPECT_NE(error.find("layer 2"), std::string::npos) << error;
  }
}

TEST(QuantizedWeightsErrors, AWidthWithoutWholeGroups) {
  ModelConfig config = kModel;
  config.n_embd = 72;
  const std::string error =
      error_of([&] { with_quantized_linears(random_weights(config, at::kFloat, 7), WeightDtype::kInt4); });
  EXPECT_EQ(error, "weight_dtype: expected n_embd to be a multiple of 32 for int4, got 72");
}

TEST(QuantizedWeightsErrors, WeightsThatAreCodesAlready) {
  const Gpt2Weights coded = with_quantized_linears(wide_weights(), WeightDtype::kInt8);
  EXPECT_NE(error_of([&] { with_quantized_linears(coded, WeightDtype::kInt8); }).find("quantised already"),
            std::string::npos);
}

}  // namespace
}  // namespace kvfuse
