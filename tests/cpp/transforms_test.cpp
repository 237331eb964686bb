// The exact transforms: the same function of the tokens, and a cache that loses less to 8 bits.
#include "csrc/model/transforms.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "csrc/model/gpt2.h"
#include "csrc/model/layer_sharing.h"
#include "csrc/versions/registry.h"

namespace kvfuse {
namespace {

constexpr ModelConfig kSmall = {.n_layer = 3, .n_head = 2, .n_embd = 96, .block_size = 64, .vocab_size = 83};

const std::vector<Transforms>& each_transform() {
  static const std::vector<Transforms> kEach = {
      {.k_bias = true},
      {.v_bias = true},
      {.qk_balance = true},
      {.rotation = true},
      {.k_bias = true, .v_bias = true, .qk_balance = true, .rotation = true}};
  return kEach;
}

std::string text_of(const Transforms& transforms) {
  std::string text;
  for (const std::string& name : names_of(transforms)) text += name + " ";
  return text;
}

// Norms and biases as training leaves them: none is zero or one.
Gpt2Weights rough_weights(at::ScalarType dtype, bool bias = true) {
  ModelConfig config = kSmall;
  config.bias = bias;
  Gpt2Weights weights = random_weights(config, dtype, 11, 0.2);
  const auto disturb = [](at::Tensor& tensor) {
    if (tensor.defined()) tensor = tensor + 0.3 * at::randn(tensor.sizes(), tensor.options());
  };
  for (LayerWeights& layer : weights.layers)
    for (at::Tensor* tensor :
         {&layer.ln_1_weight, &layer.ln_1_bias, &layer.qkv_bias, &layer.attn_proj_bias, &layer.ln_2_bias})
      disturb(*tensor);
  return weights;
}

at::Tensor random_tokens(std::int64_t length) {
  return at::randint(0, kSmall.vocab_size, {2, length}, at::TensorOptions().dtype(at::kLong));
}

at::Tensor logits_of(const Gpt2Weights& weights, const at::Tensor& tokens, KvCache* cache = nullptr) {
  return Gpt2(weights).forward(tokens, cache, LogitsOf::kEveryToken);
}

TEST(Transforms, EachIsAnIdentityInFloat64) {
  const c10::InferenceMode inference;
  const at::Tensor tokens = random_tokens(33);
  for (const bool bias : {true, false})
    for (const int group : {1, 2}) {
      Strategy strategy = cached_baseline();
      strategy.sharing_group = group;
      const Gpt2Weights weights = with_shared_layers(rough_weights(at::kDouble, bias), strategy);
      const at::Tensor want = logits_of(weights, tokens);
      for (const Transforms& transforms : each_transform()) {
        const Gpt2Weights folded = fold_transforms(weights, transforms);
        const double error = (logits_of(folded, tokens) - want).abs().max().item<double>();
        EXPECT_TRUE(error <= 1e-10 * want.abs().max().item<double>())
            << text_of(transforms) << "group " << group << " bias " << bias << ": " << error;
      }
    }
}

// The error that 8 bits bring to the logits, as a share of their spread.
double int8_error(const Gpt2Weights& weights, const at::Tensor& tokens) {
  KvCache cache(weights.config, find_version("v2"), tokens.size(0), tokens.size(1), at::kFloat);
  const at::Tensor want = logits_of(weights, tokens);
  const at::Tensor got = logits_of(weights, tokens, &cache);
  return ((got - want).square().mean().sqrt() / want.std()).item<double>();
}

at::Tensor key_part(const at::Tensor& qkv) { return qkv.narrow(0, kSmall.n_embd, kSmall.n_embd); }
at::Tensor value_part(const at::Tensor& qkv) { return qkv.narrow(0, 2 * kSmall.n_embd, kSmall.n_embd); }

TEST(Transforms, EachLowersTheErrorThatItIsMeantFor) {
  const c10::InferenceMode inference;
  const at::Tensor tokens = random_tokens(60);
  Gpt2Weights key_bias = rough_weights(at::kFloat);
  Gpt2Weights value_bias = rough_weights(at::kFloat);
  Gpt2Weights key_outlier = rough_weights(at::kFloat);
  Gpt2Weights value_outlier = rough_weights(at::kFloat);
  for (std::size_t i = 0; i < key_bias.layers.size(); ++i) {
    key_part(key_bias.layers[i].qkv_bias).mul_(100.0);
    value_part(value_bias.layers[i].qkv_bias).mul_(100.0);
    // One channel of the first head 50 times the rest. Its query, and its output, take the factor back.
    key_part(key_outlier.layers[i].qkv_weight).select(0, 5).mul_(50.0);
    key_part(key_outlier.layers[i].qkv_bias).select(0, 5).mul_(50.0);
    key_outlier.layers[i].qkv_weight.select(0, 5).div_(50.0);
    key_outlier.layers[i].qkv_bias.select(0, 5).div_(50.0);
    value_part(value_outlier.layers[i].qkv_weight).select(0, 5).mul_(50.0);
    value_part(value_outlier.layers[i].qkv_bias).select(0, 5).mul_(50.0);
    value_outlier.layers[i].attn_proj_weight.select(1, 5).div_(50.0);
  }
  const auto improvement = [&](const Gpt2Weights& weights, const Transforms& transforms) {
    return int8_error(weights, tokens) / int8_error(fold_transforms(weights, transforms), tokens);
  };
  EXPECT_GT(improvement(key_bias, {.k_bias = true}), 2.0);
  EXPECT_GT(improvement(value_bias, {.v_bias = true}), 2.0);
  EXPECT_GT(improvement(key_outlier, {.qk_balance = true}), 2.0);
  EXPECT_GT(improvement(key_outlier, {.rotation = true}), 1.5);
  EXPECT_GT(improvement(value_outlier, {.rotation = true}), 1.5);
}

TEST(Transforms, NoneLeavesTheWeightsAlone) {
  const Gpt2Weights weights = rough_weights(at::kFloat);
  const Gpt2Weights same = fold_transforms(weights, {});
  EXPECT_EQ(same.layers[0].qkv_weight.data_ptr(), weights.layers[0].qkv_weight.data_ptr());
  EXPECT_TRUE(names_of({}).empty());
  EXPECT_EQ(names_of(each_transform().back()),
            (std::vector<std::string>{"k_bias", "v_bias", "qk_balance", "rotation"}));
}

}  // namespace
}  // namespace kvfuse
