#include "csrc/model/gpt2.h"

#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <stdexcept>
#include <string>

#include "csrc/model/linear.h"
#include "csrc/ops/ops.h"

namespace kvfuse {
namespace {

constexpr double kLayerNormEpsilon = 1e-5;  // of every published GPT-2 and of nanoGPT

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::layer_norm(x, weight.sizes(), weight, bias, kLayerNormEpsilon);
}

}  // namespace

at::Tensor Gpt2::forward(const at::Tensor& tokens, KvCache* cache, LogitsOf which) const {
  check(tokens, cache);
  at::Tensor x = embed(tokens, cache == nullptr ? 0 : cache->length());
  std::int64_t index = 0;
  for (const LayerWeights& layer : weights_.layers) {
    x.add_(attention(layer_norm(x, layer.ln_1_weight, layer.ln_1_bias), layer, index++, cache));
    x.add_(mlp(layer_norm(x, layer.ln_2_weight, layer.ln_2_bias), layer));
  }
  if (cache != nullptr) cache->advance(tokens.size(1));
  if (which == LogitsOf::kLastToken) x = x.narrow(1, x.size(1) - 1, 1);
  return kvfuse::linear(layer_norm(x, weights_.ln_f_weight, weights_.ln_f_bias), weights_.token_embedding,
                        {});
}

void Gpt2::check(const at::Tensor& tokens, const KvCache* cache) const {
  const auto expect = [](bool holds, const std::string& rule, const std::string& got) {
    if (!holds) throw std::invalid_argument("Gpt2::forward: expected " + rule + ", got " + got);
  };
  expect(tokens.dim() == 2 && tokens.scalar_type() == at::kLong && tokens.numel() > 0,
         "tokens int64 [batch, T], not empty",
         std::string(c10::toString(tokens.scalar_type())) + " with " + std::to_string(tokens.numel()) +
             " elements");
  const std::int64_t end = tokens.size(1) + (cache == nullptr ? 0 : cache->length());
  expect(end <= config().block_size, "at most block_size " + std::to_string(config().block_size) + " tokens",
         std::to_string(end));
  if (cache == nullptr) return;
  expect(end <= cache->capacity(),
         "at most the cache's capacity of " + std::to_string(cache->capacity()) + " tokens",
         std::to_string(end));
  expect(tokens.size(0) == cache->batch(), "the cache's batch " + std::to_string(cache->batch()),
         std::to_string(tokens.size(0)));
}

at::Tensor Gpt2::embed(const at::Tensor& tokens, std::int64_t first_position) const {
  return at::embedding(weights_.token_embedding, tokens)
      .add_(weights_.position_embedding.narrow(0, first_position, tokens.size(1)));
}

at::Tensor Gpt2::attention(const at::Tensor& x, const LayerWeights& layer, std::int64_t index,
                           KvCache* cache) const {
  const std::int64_t batch = x.size(0);
  const std::int64_t length = x.size(1);
  // Views into the fused projection: [batch, n_head, T, head_dim] each.
  const at::Tensor qkv = linear(x, layer.qkv_weight, layer.qkv_bias)
                             .view({batch, length, 3, config().n_head, config().head_dim()})
                             .permute({2, 0, 3, 1, 4});
  const at::Tensor q = qkv.select(0, 0);
  const at::Tensor k = qkv.select(0, 1);
  const at::Tensor v = qkv.select(0, 2);
  at::Tensor out;
  if (cache == nullptr) {
    // PyTorch's own attention: the baseline, and an independent judge of the cached versions.
    out = at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true);
  } else {
    const KvCacheLayer& kv = cache->layer(index);
    const auto attend = length == 1 ? ops::append_decode_attention : ops::prefill_attention;
    out = attend(q, k, v, kv.k, kv.v, cache->cache_seqlens(), kv.k_scale, kv.v_scale, std::nullopt);
  }
  return linear(out.transpose(1, 2).reshape({batch, length, config().n_embd}), layer.attn_proj_weight,
                layer.attn_proj_bias);
}

at::Tensor Gpt2::mlp(const at::Tensor& x, const LayerWeights& layer) const {
  const Gelu gelu = weights_.gelu_tanh ? Gelu::kTanh : Gelu::kExact;
  return linear(linear_gelu(x, layer.fc_weight, layer.fc_bias, gelu), layer.mlp_proj_weight,
                layer.mlp_proj_bias);
}

}  // namespace kvfuse
