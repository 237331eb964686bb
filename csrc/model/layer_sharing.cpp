#include "csrc/model/layer_sharing.h"

#include <stdexcept>

namespace kvfuse {
namespace {

at::Tensor query_rows(const at::Tensor& qkv, std::int64_t n_embd) {
  return qkv.defined() ? qkv.narrow(0, 0, n_embd) : qkv;
}

}  // namespace

Gpt2Weights with_shared_layers(Gpt2Weights weights, const Strategy& strategy) {
  if (weights.sharing_group != 1)
    throw std::invalid_argument(
        "with_shared_layers: expected weights in which every layer owns its K and V, "
        "got groups of " +
        std::to_string(weights.sharing_group));
  check_strategy(strategy);
  if (strategy.q_alignment == QAlignment::kFit)
    throw std::invalid_argument(
        "with_shared_layers: expected q_alignment none or copy, got fit (fit_shared_layers does that)");
  const std::int64_t n_embd = weights.config.n_embd;
  weights.sharing_group = strategy.sharing_group;
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    const std::size_t owner = i - i % static_cast<std::size_t>(strategy.sharing_group);
    if (owner == i) continue;
    const LayerWeights& queries_of = weights.layers[strategy.q_alignment == QAlignment::kCopy ? owner : i];
    const at::Tensor weight = query_rows(queries_of.qkv_weight, n_embd);
    const at::Tensor scale = query_rows(queries_of.qkv_scale, n_embd);
    const at::Tensor bias = query_rows(queries_of.qkv_bias, n_embd);
    weights.layers[i].qkv_weight = weight;
    weights.layers[i].qkv_scale = scale;
    weights.layers[i].qkv_bias = bias;
  }
  return weights;
}

}  // namespace kvfuse
