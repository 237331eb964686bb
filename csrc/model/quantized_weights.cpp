#include "csrc/model/quantized_weights.h"

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "csrc/ops/ops.h"
#include "kernels/weight_format.h"

namespace kvfuse {
namespace {

void quantize(at::Tensor& weight, at::Tensor& scale, WeightDtype dtype, const std::string& name) {
  try {
    std::tie(weight, scale) = ops::quantize_weight(weight, weight_dtype_name(dtype));
  } catch (const c10::Error& error) {
    throw std::invalid_argument(name + ": " + error.what_without_backtrace());
  }
}

void check(const Gpt2Weights& weights, WeightDtype dtype) {
  const auto expect = [](bool holds, const std::string& expected, const std::string& got) {
    if (!holds) throw std::invalid_argument("weight_dtype: expected " + expected + ", got " + got);
  };
  expect(weights.device().is_cpu(), "the CPU, where quantised weights are run",
         "device " + weights.device().str());
  expect(weights.weight_dtype() == WeightDtype::kModel, "weights in floating point",
         "some that are quantised already");
  expect(dtype != WeightDtype::kInt4 || weights.config.n_embd % kInt4Group == 0,
         "n_embd to be a multiple of " + std::to_string(kInt4Group) + " for int4",
         std::to_string(weights.config.n_embd));
}

}  // namespace

Gpt2Weights with_quantized_linears(Gpt2Weights weights, WeightDtype dtype) {
  check(weights, dtype);
  quantize(weights.token_embedding, weights.token_embedding_scale, WeightDtype::kInt8, "the token embedding");
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    LayerWeights& layer = weights.layers[i];
    const std::string of_layer = " of layer " + std::to_string(i);
    quantize(layer.qkv_weight, layer.qkv_scale, dtype, "attn.c_attn" + of_layer);
    quantize(layer.attn_proj_weight, layer.attn_proj_scale, dtype, "attn.c_proj" + of_layer);
    quantize(layer.fc_weight, layer.fc_scale, dtype, "mlp.c_fc" + of_layer);
    quantize(layer.mlp_proj_weight, layer.mlp_proj_scale, dtype, "mlp.c_proj" + of_layer);
  }
  return weights;
}

}  // namespace kvfuse
