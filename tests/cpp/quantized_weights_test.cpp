// Weights as codes: against the same values in floating point.
#include "csrc/model/quantized_weights.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>

#include <cmath>
#include <limits>

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

void expect_logits_of_values(WeightDtype dtype, double allowed) {
  const c10::InferenceMode inference;
  const Gpt2 coded(with_quantized_linears(wide_weights(), dtype));
  Gpt2Weights values = coded.weights();
  const auto stand_for = [](at::Tensor& codes, at::Tensor& scale) {
    codes = dequantized(codes, scale, at::kFloat);
    scale = at::Tensor();
  };
  stand_for(values.token_embedding, values.token_embedding_scale);
  for (LayerWeights& layer : values.layers) {
    stand_for(layer.qkv_weight, layer.qkv_scale);
    stand_for(layer.attn_proj_weight, layer.attn_proj_scale);
    stand_for(layer.fc_weight, layer.fc_scale);
    stand_for(layer.mlp_proj_weight, layer.mlp_proj_scale);
  }
  const Gpt2 floating(std::move(values));
  KvCache coded_cache(kModel, int8_weights(), 2, 64, at::kFloat),
      cache(kModel, int8_weights(), 2, 64, at::kFloat);
  for (const std::int64_t tokens : {9, 1, 1, 1}) {
    const at::Tensor rows =
        at::randint(0, kModel.vocab_size, {2, tokens}, at::TensorOptions().dtype(at::kLong));
    EXPECT_TRUE(close(coded.forward(rows, &coded_cache, LogitsOf::kLastToken),
                      floating.forward(rows, &cache, LogitsOf::kLastToken), allowed));
  }
}

TEST(QuantizedWeights, GiveTheLogitsOfTheValuesTheyStandFor) {
  // Activations are rounded to 8 bits, those of the head too; logits are of 5.
  expect_logits_of_values(WeightDtype::kInt8, 0.2);
  expect_logits_of_values(WeightDtype::kInt4, 0.2);
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
