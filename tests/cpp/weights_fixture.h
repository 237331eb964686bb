// What the tests of GPT-2's weights share: a tiny model as tensors and as files, and what loading them says.
#pragma once

#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "csrc/model/gpt2_checkpoint.h"
#include "csrc/model/weights.h"
#include "tests/cpp/safetensors_writer.h"
#include "tests/cpp/temporary_folder.h"

namespace kvfuse {

using test::safetensors_bytes;
using test::TemporaryFolder;
using test::WrittenTensor;
using Tensors = std::map<std::string, at::Tensor>;

inline const ModelConfig kTiny = {.n_layer = 2, .n_head = 2, .n_embd = 4, .block_size = 6, .vocab_size = 10};
inline const std::string kExpected =
    "expected GPT-2 with n_layer 2, n_head 2, n_embd 4, block_size 6, vocab_size 10; got ";

// By plain name, linears [out, in]: float32 values that float16 holds exactly.
inline Tensors model_tensors(const ModelConfig& config) {
  Tensors tensors;
  for (const TensorSpec& spec : gpt2_tensors(config))
    tensors[spec.name] = at::randn(spec.shape, at::kFloat).to(at::kHalf).to(at::kFloat);
  return tensors;
}

inline Tensors as_hugging_face(Tensors tensors) {
  for (const TensorSpec& spec : gpt2_tensors(kTiny))
    if (spec.linear) tensors[spec.name] = tensors[spec.name].t().contiguous();
  return tensors;
}

inline std::string dtype_name(at::ScalarType dtype) {
  const std::map<at::ScalarType, std::string> names = {{at::kFloat, "F32"},
                                                       {at::kHalf, "F16"},
                                                       {at::kBFloat16, "BF16"},
                                                       {at::kDouble, "F64"},
                                                       {at::kLong, "I64"}};
  return names.at(dtype);
}

inline std::string file_bytes(const Tensors& tensors, const std::string& prefix = "") {
  std::vector<WrittenTensor> written;
  for (const auto& [name, tensor] : tensors)
    written.push_back({prefix + name, dtype_name(tensor.scalar_type()), tensor.sizes().vec(),
                       std::string(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes())});
  return safetensors_bytes(written);
}

inline void expect_weights(const Gpt2Weights& got, const Tensors& want, at::ScalarType dtype = at::kFloat) {
  std::size_t seen = 0;
  const auto expect = [&](const at::Tensor& tensor, const std::string& name) {
    const auto found = want.find(name);
    ASSERT_EQ(tensor.defined(), found != want.end()) << name;
    if (!tensor.defined()) return;
    EXPECT_TRUE(at::equal(tensor, found->second.to(dtype))) << name;
    EXPECT_TRUE(tensor.is_contiguous()) << name;
    ++seen;
  };
  expect(got.token_embedding, "wte.weight");
  expect(got.position_embedding, "wpe.weight");
  ASSERT_EQ(static_cast<std::int64_t>(got.layers.size()), got.config.n_layer);
  for (std::size_t i = 0; i < got.layers.size(); ++i) {
    const LayerWeights& layer = got.layers[i];
    const std::string prefix = "h." + std::to_string(i) + ".";
    expect(layer.ln_1_weight, prefix + "ln_1.weight");
    expect(layer.ln_1_bias, prefix + "ln_1.bias");
    expect(layer.qkv_weight, prefix + "attn.c_attn.weight");
    expect(layer.qkv_bias, prefix + "attn.c_attn.bias");
    expect(layer.attn_proj_weight, prefix + "attn.c_proj.weight");
    expect(layer.attn_proj_bias, prefix + "attn.c_proj.bias");
    expect(layer.ln_2_weight, prefix + "ln_2.weight");
    expect(layer.ln_2_bias, prefix + "ln_2.bias");
    expect(layer.fc_weight, prefix + "mlp.c_fc.weight");
    expect(layer.fc_bias, prefix + "mlp.c_fc.bias");
    expect(layer.mlp_proj_weight, prefix + "mlp.c_proj.weight");
    expect(layer.mlp_proj_bias, prefix + "mlp.c_proj.bias");
  }
  expect(got.ln_f_weight, "ln_f.weight");
  expect(got.ln_f_bias, "ln_f.bias");
  EXPECT_EQ(seen, want.size());
}

class WeightsTest : public ::testing::Test {
 protected:
  Gpt2Weights load(const LoadOptions& options = {}) {
    return load_weights(folder_.path(), kTiny, at::kFloat, options);
  }
  Gpt2Weights load(const Tensors& tensors, const std::string& prefix = "") {
    folder_.write("model.safetensors", file_bytes(tensors, prefix));
    return load();
  }

  // The message of the ModelFileError, without the path of the folder.
  std::string refusal(const std::function<void()>& load) {
    try {
      load();
    } catch (const ModelFileError& error) {
      const std::string message = error.what(), folder = folder_.path().native();
      EXPECT_TRUE(message.starts_with(folder)) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      return message.substr(folder.size());
    }
    return "accepted";
  }
  std::string refusal() {
    return refusal([&] { load(); });
  }
  std::string refusal(const Tensors& tensors) {
    return refusal([&] { load(tensors); });
  }

  TemporaryFolder folder_;
  const Tensors tensors_ = model_tensors(kTiny);
  const Tensors hugging_face_ = as_hugging_face(tensors_);
};

}  // namespace kvfuse
