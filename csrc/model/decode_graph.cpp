#include "csrc/model/decode_graph.h"

#include <ATen/ops/zeros.h>

#include <stdexcept>

#include "csrc/ops/dtype.h"

namespace kvfuse {
namespace {

const void* pointer_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

Gpt2LayerPointers layer_pointers(const LayerWeights& layer, std::int64_t index, std::int64_t sharing_group) {
  return {.ln_1_weight = pointer_of(layer.ln_1_weight),
          .ln_1_bias = pointer_of(layer.ln_1_bias),
          .qkv_weight = pointer_of(layer.qkv_weight),
          .qkv_bias = pointer_of(layer.qkv_bias),
          .attn_proj_weight = pointer_of(layer.attn_proj_weight),
          .attn_proj_bias = pointer_of(layer.attn_proj_bias),
          .ln_2_weight = pointer_of(layer.ln_2_weight),
          .ln_2_bias = pointer_of(layer.ln_2_bias),
          .fc_weight = pointer_of(layer.fc_weight),
          .fc_bias = pointer_of(layer.fc_bias),
          .mlp_proj_weight = pointer_of(layer.mlp_proj_weight),
          .mlp_proj_bias = pointer_of(layer.mlp_proj_bias),
          .cache_layer = index / sharing_group,
          .appends = index % sharing_group == 0};
}

CacheView cache_view(const KvCacheLayer& layer) {
  const auto scale = [](const std::optional<at::Tensor>& tensor) {
    return tensor ? tensor->mutable_data_ptr<float>() : nullptr;
  };
  return {.k = layer.k.mutable_data_ptr(),
          .v = layer.v.mutable_data_ptr(),
          .k_scale = scale(layer.k_scale),
          .v_scale = scale(layer.v_scale),
          .dtype = ops::to_dtype(layer.k.scalar_type()).value(),
          .batch = layer.k.size(0),
          .kv_heads = layer.k.size(1),
          .capacity = layer.k.size(2),
          .head_dim = layer.k.size(3)};
}

}  // namespace

DecodeGraph::DecodeGraph(const Gpt2& model, KvCache& cache, std::int64_t most_tokens,
                         const SamplerOptions& sampler, bool overlap_kernels,
                         const ops::CudaServices& services) {
  const Gpt2Weights& weights = model.weights();
  const ModelConfig& config = weights.config;
  if (cache.sharing_group() != weights.sharing_group)
    throw std::invalid_argument("DecodeGraph: expected a cache for groups of " +
                                std::to_string(weights.sharing_group) + " layers, got " +
                                std::to_string(cache.sharing_group()));
  for (std::int64_t i = 0; i < config.n_layer; ++i) {
    layers_.push_back(layer_pointers(weights.layers[static_cast<std::size_t>(i)], i, cache.sharing_group()));
    if (layers_.back().appends) caches_.push_back(cache_view(cache.layer(i)));
  }
  cache.reset();
  const at::TensorOptions on_device = cache.cache_seqlens().options();
  tokens_ = at::zeros({cache.batch()}, on_device.dtype(at::kLong));
  steps_ = at::zeros({cache.batch()}, on_device.dtype(at::kInt));
  out_tokens_ = at::zeros({cache.batch(), most_tokens}, on_device.dtype(at::kLong));
  const DecodeStepParams params{.token_embedding = pointer_of(weights.token_embedding),
                                .position_embedding = pointer_of(weights.position_embedding),
                                .layers = layers_,
                                .ln_f_weight = pointer_of(weights.ln_f_weight),
                                .ln_f_bias = pointer_of(weights.ln_f_bias),
                                .caches = caches_,
                                .tokens = tokens_.mutable_data_ptr<std::int64_t>(),
                                .cache_seqlens = cache.cache_seqlens().mutable_data_ptr<std::int32_t>(),
                                .steps = steps_.mutable_data_ptr<std::int32_t>(),
                                .out_tokens = out_tokens_.mutable_data_ptr<std::int64_t>(),
                                .out_capacity = most_tokens,
                                .dtype = ops::to_dtype(model.dtype()).value(),
                                .gelu_tanh = weights.gelu_tanh,
                                .batch = cache.batch(),
                                .n_embd = config.n_embd,
                                .n_head = config.n_head,
                                .vocab_size = config.vocab_size,
                                .block_size = config.block_size,
                                .overlap_previous = overlap_kernels,
                                .temperature = static_cast<float>(sampler.temperature),
                                .top_k = sampler.top_k,
                                .top_p = sampler.top_p,
                                .seed = sampler.seed};
  graph_ = services.capture_step(params, on_device.device().index());
}

void DecodeGraph::start(const at::Tensor& tokens) {
  tokens_.copy_(tokens);
  steps_.zero_();
}

}  // namespace kvfuse
