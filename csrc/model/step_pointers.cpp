#include "csrc/model/step_pointers.h"

#include "csrc/ops/dtype.h"

namespace kvfuse {
namespace {

const void* pointer_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

Gpt2LayerPointers pointers_of(const LayerWeights& layer, std::int64_t index, std::int64_t sharing_group) {
  return {.ln_1_weight = pointer_of(layer.ln_1_weight),
          .ln_1_bias = pointer_of(layer.ln_1_bias),
          .qkv_weight = pointer_of(layer.qkv_weight),
          .qkv_weight_scale = pointer_of(layer.qkv_scale),
          .qkv_bias = pointer_of(layer.qkv_bias),
          .attn_proj_weight = pointer_of(layer.attn_proj_weight),
          .attn_proj_weight_scale = pointer_of(layer.attn_proj_scale),
          .attn_proj_bias = pointer_of(layer.attn_proj_bias),
          .ln_2_weight = pointer_of(layer.ln_2_weight),
          .ln_2_bias = pointer_of(layer.ln_2_bias),
          .fc_weight = pointer_of(layer.fc_weight),
          .fc_weight_scale = pointer_of(layer.fc_scale),
          .fc_bias = pointer_of(layer.fc_bias),
          .mlp_proj_weight = pointer_of(layer.mlp_proj_weight),
          .mlp_proj_weight_scale = pointer_of(layer.mlp_proj_scale),
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

std::vector<Gpt2LayerPointers> layer_pointers(const Gpt2Weights& weights) {
  std::vector<Gpt2LayerPointers> layers;
  for (std::size_t i = 0; i < weights.layers.size(); ++i)
    layers.push_back(pointers_of(weights.layers[i], static_cast<std::int64_t>(i), weights.sharing_group));
  return layers;
}

std::vector<CacheView> cache_views(const KvCache& cache, const Gpt2Weights& weights) {
  std::vector<CacheView> caches;
  for (std::int64_t i = 0; i < weights.config.n_layer; i += weights.sharing_group)
    caches.push_back(cache_view(cache.layer(i)));
  return caches;
}

DecodeStepParams step_params(const Gpt2Weights& weights, const KvCache& cache,
                             const std::vector<Gpt2LayerPointers>& layers,
                             const std::vector<CacheView>& caches) {
  const WeightDtype tokens =
      weights.token_embedding_scale.defined() ? WeightDtype::kInt8 : WeightDtype::kModel;
  return {.token_embedding = pointer_of(weights.token_embedding),
          .token_embedding_scale = static_cast<const float*>(pointer_of(weights.token_embedding_scale)),
          .position_embedding = pointer_of(weights.position_embedding),
          .layers = layers,
          .ln_f_weight = pointer_of(weights.ln_f_weight),
          .ln_f_bias = pointer_of(weights.ln_f_bias),
          .caches = caches,
          .cache_seqlens = cache.cache_seqlens().mutable_data_ptr<std::int32_t>(),
          .dtype = ops::to_dtype(weights.dtype()).value(),
          .layer_format = weight_format(weights.weight_dtype(), weights.packed),
          .token_format = weight_format(tokens, weights.packed_tokens),
          .gelu_tanh = weights.gelu_tanh,
          .batch = cache.batch(),
          .n_embd = weights.config.n_embd,
          .n_head = weights.config.n_head,
          .vocab_size = weights.config.vocab_size,
          .block_size = weights.config.block_size};
}

}  // namespace kvfuse
