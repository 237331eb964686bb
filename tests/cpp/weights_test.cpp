// GPT-2's weights: both namings, tied heads, every kind of difference in one message, NaN, and seeds.
#include "csrc/model/weights.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include "csrc/model/gpt2_checkpoint.h"
#include "tests/cpp/weights_fixture.h"

namespace kvfuse {
namespace {

TEST_F(WeightsTest, HuggingFaceNaming) {
  for (const char* prefix : {"", "transformer."}) {
    const Gpt2Weights weights = load(hugging_face_, prefix);
    expect_weights(weights, tensors_);
    EXPECT_TRUE(weights.gelu_tanh);
    EXPECT_TRUE(weights.warnings.empty());
    EXPECT_EQ(weights.config, kTiny);
  }
}

TEST_F(WeightsTest, NanoGptNaming) {
  for (const char* prefix : {"transformer.", "_orig_mod.transformer."}) {
    const Gpt2Weights weights = load(tensors_, prefix);
    expect_weights(weights, tensors_);
    EXPECT_FALSE(weights.gelu_tanh);
  }
}

TEST_F(WeightsTest, WithoutBiases) {
  ModelConfig config = kTiny;
  config.bias = false;
  const Tensors tensors = model_tensors(config);
  const auto path = folder_.write("nano.safetensors", file_bytes(tensors, "transformer."));
  const Gpt2Weights weights = load_weights(path, config, at::kFloat);
  expect_weights(weights, tensors);
  EXPECT_EQ(weights.byte_size(), 4 * config.parameter_count());
  EXPECT_EQ(load(hugging_face_).byte_size(), 4 * kTiny.parameter_count());
}

TEST_F(WeightsTest, EveryFloatBecomesEveryFloat) {
  for (const at::ScalarType stored : {at::kFloat, at::kHalf, at::kBFloat16, at::kDouble}) {
    Tensors tensors = hugging_face_, want = tensors_;
    for (auto& [name, tensor] : tensors) tensor = tensor.to(stored);
    for (auto& [name, tensor] : want) tensor = tensor.to(stored);
    const auto path = folder_.write("model.safetensors", file_bytes(tensors));
    for (const at::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16, at::kDouble})
      expect_weights(load_weights(path, kTiny, dtype), want, dtype);
  }
  EXPECT_THROW(load_weights(folder_.path(), kTiny, at::kLong), std::invalid_argument);
  EXPECT_THROW(random_weights(kTiny, at::kLong, 1), std::invalid_argument);
}

TEST_F(WeightsTest, MaskBuffersAreIgnored) {
  Tensors tensors = hugging_face_;
  tensors["h.0.attn.bias"] = at::randn({1, 1, 6, 6});
  tensors["h.1.attn.masked_bias"] = at::randn({}).to(at::kLong);
  expect_weights(load(tensors), tensors_);
}

TEST_F(WeightsTest, HeadIsTied) {
  Tensors tensors = hugging_face_;
  tensors["lm_head.weight"] = tensors["wte.weight"];
  expect_weights(load(tensors), tensors_);

  Tensors head_alone = tensors;
  head_alone.erase("wte.weight");
  expect_weights(load(head_alone), tensors_);

  for (const at::Tensor& other : {tensors["wte.weight"].neg(), tensors["wte.weight"].to(at::kDouble)}) {
    tensors["lm_head.weight"] = other;
    EXPECT_EQ(refusal(tensors),
              ": " + kExpected +
                  "1 difference: 'lm_head.weight' differs from 'wte.weight' (expected a tied "
                  "head: the same values)");
  }
}

TEST_F(WeightsTest, DifferencesAreListedTogether) {
  Tensors tensors = hugging_face_;
  tensors.erase("h.1.ln_2.bias");
  tensors["h.0.mlp.c_fc.weight"] = tensors["h.0.mlp.c_fc.weight"].t().contiguous();
  tensors["ln_f.weight"] = tensors["ln_f.weight"].to(at::kLong);
  tensors["h.2.ln_1.weight"] = tensors["h.1.ln_1.weight"];
  EXPECT_EQ(refusal(tensors),
            ": " + kExpected +
                "4 differences: 'h.0.mlp.c_fc.weight' has shape [16, 4], expected [4, 16]; "
                "'h.1.ln_2.bias' is missing; 'ln_f.weight' has dtype I64, expected F32, F16, "
                "BF16 or F64; 'h.2.ln_1.weight' is not part of the model");

  Tensors twice = hugging_face_;
  twice["transformer.ln_f.bias"] = twice["ln_f.bias"];
  EXPECT_EQ(refusal(twice),
            ": " + kExpected + "1 difference: 'transformer.ln_f.bias' and 'ln_f.bias' name the same tensor");
}

TEST_F(WeightsTest, TenDifferencesAreListedAndAllCounted) {
  ModelConfig config = kTiny;
  config.n_layer = 3;
  load(hugging_face_);
  const std::string message = refusal([&] { load_weights(folder_.path(), config, at::kFloat); });
  EXPECT_NE(message.find("; got 12 differences: 'h.2.ln_1.weight' is missing; "), std::string::npos)
      << message;
  EXPECT_TRUE(message.ends_with("'h.2.mlp.c_fc.bias' is missing; and 2 more")) << message;

  config = kTiny;
  config.bias = false;
  const std::string biases = refusal([&] { load_weights(folder_.path(), config, at::kFloat); });
  EXPECT_NE(biases.find("vocab_size 10, no biases; got 13 differences: 'h.0.attn.c_attn.bias' is not part"),
            std::string::npos)
      << biases;
}

TEST_F(WeightsTest, OneLayerLyingTheOtherWayIsRefused) {
  Tensors tensors = hugging_face_;
  tensors["h.1.attn.c_attn.weight"] = tensors_.at("h.1.attn.c_attn.weight");
  EXPECT_EQ(refusal(tensors),
            ": " + kExpected + "1 difference: 'h.1.attn.c_attn.weight' has shape [12, 4], expected [4, 12]");
  tensors = hugging_face_;
  tensors["h.0.attn.c_attn.weight"] = at::randn({8});
  EXPECT_EQ(refusal(tensors),
            ": " + kExpected + "1 difference: 'h.0.attn.c_attn.weight' has shape [8], expected [4, 12]");
}

TEST_F(WeightsTest, HuggingFaceConfigIsChecked) {
  const auto with_config = [&](const std::string& json) {
    folder_.write("config.json", json);
    return refusal(hugging_face_);
  };
  EXPECT_EQ(
      with_config(R"({"model_type":"gpt2","n_layer":2,"n_head":2,"n_embd":4,"n_positions":6,"vocab_size":10,
                           "layer_norm_epsilon":1e-05,"activation_function":"gelu_new","scale_attn_weights":true,
                           "scale_attn_by_inverse_layer_idx":false,"summary_type":"cls_index"})"),
      "accepted");
  EXPECT_EQ(with_config(R"({"n_head":4})"),
            ": " + kExpected + "1 difference: config.json has n_head '4', expected 2");
  EXPECT_EQ(
      with_config(R"({"n_layer":"2","layer_norm_epsilon":1e-6,"activation_function":"relu"})"),
      ": " + kExpected +
          "3 differences: config.json has n_layer '\"2\"', expected 2; config.json has layer_norm_epsilon "
          "'1e-06', expected 1e-05; config.json has activation_function '\"relu\"', expected gelu_new, "
          "gelu_pytorch_tanh or gelu");
  EXPECT_EQ(with_config("[]"), "/config.json: expected a JSON object, got array");
  EXPECT_EQ(with_config("{"), "/config.json: expected valid JSON, got an error at byte 2");
  EXPECT_EQ(with_config(R"({"n_head":1e999})"),
            "/config.json: expected valid JSON, got a number out of range");
  EXPECT_EQ(with_config(R"({"a":{"n_head":2},"n_head":2,"n_head":3})"),
            "/config.json: key 'n_head' is given twice");
  EXPECT_EQ(with_config(R"({"a":)" + std::string(1'000'000, '[')),
            "/config.json: expected JSON of at most 16 levels, got more");
  EXPECT_EQ(with_config(std::string("{}\0", 3)), "/config.json: expected JSON, got a NUL byte");
  EXPECT_EQ(with_config(std::string((16 << 20) + 1, ' ')),
            "/config.json: expected at most 16777216 bytes of JSON, got 16777217");
}

TEST_F(WeightsTest, ActivationOfConfigOverrulesNaming) {
  folder_.write("config.json", R"({"activation_function":"gelu"})");
  EXPECT_FALSE(load(hugging_face_).gelu_tanh);
  folder_.write("config.json", R"({"activation_function":"gelu_pytorch_tanh"})");
  EXPECT_TRUE(load(tensors_).gelu_tanh);
}

TEST_F(WeightsTest, NonFiniteWeightsAreWarnedOfOrRefused) {
  Tensors tensors = hugging_face_;
  at::Tensor embedding = tensors["wte.weight"] = tensors["wte.weight"].clone();
  embedding[3][1] = std::nan("");
  embedding[9][3] = -std::numeric_limits<float>::infinity();
  at::Tensor large = tensors["ln_f.bias"] = tensors["ln_f.bias"].clone();
  large[0] = 1e6;  // beyond float16
  const Gpt2Weights weights = load(tensors);
  const std::string path = (folder_.path() / "model.safetensors").native();
  const std::string finding = path + ": tensor 'wte.weight': 2 of 40 values are NaN or infinite as Float";
  EXPECT_EQ(weights.warnings, std::vector<std::string>{finding});
  EXPECT_EQ(load_weights(path, kTiny, at::kHalf).warnings.front(),
            path + ": tensor 'ln_f.bias': 1 of 4 values are NaN or infinite as Half");
  EXPECT_EQ(folder_.path().native() + refusal([&] { load({.strict = true}); }), finding);
  load(hugging_face_);
  EXPECT_TRUE(load({.strict = true}).warnings.empty());
}

TEST(RandomWeights, FollowTheSeed) {
  const Gpt2Weights first = random_weights(kTiny, at::kFloat, 7),
                    again = random_weights(kTiny, at::kFloat, 7);
  const Gpt2Weights other = random_weights(kTiny, at::kFloat, 8), half = random_weights(kTiny, at::kHalf, 7);
  EXPECT_TRUE(at::equal(first.layers[1].mlp_proj_weight, again.layers[1].mlp_proj_weight));
  EXPECT_FALSE(at::equal(first.layers[1].mlp_proj_weight, other.layers[1].mlp_proj_weight));
  EXPECT_FALSE(at::equal(first.layers[0].qkv_weight, first.layers[1].qkv_weight));
  EXPECT_TRUE(at::equal(first.token_embedding.to(at::kHalf), half.token_embedding));
  EXPECT_TRUE(first.gelu_tanh);
  EXPECT_EQ(half.byte_size(), 2 * kTiny.parameter_count());
}

TEST(RandomWeights, AreSpreadAsInGpt2) {
  const ModelConfig config = {.n_layer = 2, .n_head = 2, .n_embd = 128, .block_size = 64, .vocab_size = 500};
  const Gpt2Weights weights = random_weights(config, at::kFloat, 1);
  const auto deviation = [](const at::Tensor& tensor) { return tensor.std().item<double>(); };
  EXPECT_NEAR(deviation(weights.token_embedding), 0.02, 0.0005);
  EXPECT_NEAR(deviation(weights.layers[0].fc_weight), 0.02, 0.0005);
  EXPECT_NEAR(deviation(weights.layers[0].attn_proj_weight), 0.01, 0.0005);
  EXPECT_NEAR(deviation(weights.layers[1].mlp_proj_weight), 0.01, 0.0005);
  EXPECT_NEAR(weights.token_embedding.mean().item<double>(), 0.0, 0.0005);
  EXPECT_TRUE(weights.ln_f_weight.eq(1).all().item<bool>());
  EXPECT_TRUE(weights.layers[0].qkv_bias.eq(0).all().item<bool>());
}

}  // namespace
}  // namespace kvfuse
