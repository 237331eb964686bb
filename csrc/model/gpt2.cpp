#include "csrc/model/gpt2.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "csrc/model/fused_step.h"
#include "csrc/model/linear.h"
#include "csrc/model/packed_weights.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/trust_lengths.h"
#include "kernels/decode_step.h"

namespace kvfuse {
namespace {

constexpr double kLayerNormEpsilon = 1e-5;  // of every published GPT-2 and of nanoGPT

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::layer_norm(x, weight.sizes(), weight, bias, kLayerNormEpsilon);
}

// In place, unless a gradient needs what was there.
void add_to(at::Tensor& x, const at::Tensor& more) {
  if (at::GradMode::is_enabled() && more.requires_grad())
    x = x + more;
  else
    x.add_(more);
}

// The hidden states [batch, 1, n_embd] of each sequence's last token.
at::Tensor last_tokens(const at::Tensor& x, const std::vector<std::int64_t>& lengths) {
  const std::int64_t length = lengths.front();
  if (std::equal(lengths.begin() + 1, lengths.end(), lengths.begin())) return x.narrow(1, length - 1, 1);
  std::vector<at::Tensor> rows;
  for (std::size_t b = 0; b < lengths.size(); ++b)
    rows.push_back(x.select(0, static_cast<std::int64_t>(b)).narrow(0, lengths[b] - 1, 1));
  return at::stack(rows);
}

void check_ids(const at::Tensor& tokens, std::int64_t vocab_size) {
  const auto* ids = tokens.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < tokens.numel(); ++i)
    if (ids[i] < 0 || ids[i] >= vocab_size)
      throw std::invalid_argument("Gpt2::forward: expected tokens in [0, " + std::to_string(vocab_size) +
                                  "), got " + std::to_string(ids[i]));
}

}  // namespace

at::Tensor Gpt2::forward(const TokenBatch& batch, KvCache* cache, LogitsOf which,
                         const OnPhase& on_phase) const {
  if (cache == nullptr || !suits_fused_step(weights_, batch.tokens))
    return forward_unfused(batch, cache, which, on_phase);
  check(batch, cache);
  return fused_step(weights_, batch.tokens, *cache, on_phase);
}

at::Tensor Gpt2::forward_unfused(const TokenBatch& batch, KvCache* cache, LogitsOf which,
                                 const OnPhase& on_phase) const {
  check(batch, cache);
  const at::Tensor& tokens = batch.tokens;
  const auto begins = [&](Phase phase) {
    if (on_phase) on_phase(phase);
  };
  begins(Phase::kEmbedding);
  at::Tensor x = embed(tokens, cache);
  // The lengths are the model's own and were checked above.
  const ops::TrustLengths vouched;
  Pass pass{.cache = cache, .visible = {}, .k = {}, .v = {}};
  if (cache != nullptr && weights_.sharing_group > 1) pass.visible = cache->cache_seqlens() + tokens.size(1);
  std::int64_t index = 0;
  for (const LayerWeights& layer : weights_.layers) {
    begins(Phase::kAttention);
    add_to(x, attention(layer_norm(x, layer.ln_1_weight, layer.ln_1_bias), layer, index++, pass));
    begins(Phase::kMlp);
    add_to(x, mlp(layer_norm(x, layer.ln_2_weight, layer.ln_2_bias), layer));
  }
  if (cache != nullptr) cache->advance(batch.lengths);
  begins(Phase::kHead);
  if (which == LogitsOf::kLastToken) x = last_tokens(x, batch.lengths);
  const LinearWeight head{.values = weights_.token_embedding,
                          .scale = weights_.token_embedding_scale,
                          .fine_activations = true,
                          .packed = weights_.packed_tokens};
  at::Tensor logits = kvfuse::linear(layer_norm(x, weights_.ln_f_weight, weights_.ln_f_bias), head, {});
  begins(Phase::kOther);
  return logits;
}

void Gpt2::check(const TokenBatch& batch, const KvCache* cache) const {
  check_token_batch("Gpt2::forward", batch);
  const at::Tensor& tokens = batch.tokens;
  const auto expect = [](bool holds, const std::string& rule, const std::string& got) {
    if (!holds) throw std::invalid_argument("Gpt2::forward: expected " + rule + ", got " + got);
  };
  if (tokens.is_cpu()) check_ids(tokens.contiguous(), config().vocab_size);
  const std::int64_t end = tokens.size(1) + (cache == nullptr ? 0 : cache->length());
  expect(end <= config().block_size, "at most block_size " + std::to_string(config().block_size) + " tokens",
         std::to_string(end));
  if (cache == nullptr) return;
  expect(end <= cache->capacity(),
         "at most the cache's capacity of " + std::to_string(cache->capacity()) + " tokens",
         std::to_string(end));
  expect(cache->sharing_group() == weights_.sharing_group,
         "a cache for groups of " + std::to_string(weights_.sharing_group) + " layers",
         std::to_string(cache->sharing_group()));
  const std::int64_t owners = owning_layers(config().n_layer, weights_.sharing_group);
  expect(cache->owners() == owners, "a cache of " + std::to_string(owners) + " layers",
         std::to_string(cache->owners()));
  expect(tokens.size(0) == cache->batch(), "the cache's batch " + std::to_string(cache->batch()),
         std::to_string(tokens.size(0)));
}

at::Tensor Gpt2::embed(const at::Tensor& tokens, const KvCache* cache) const {
  at::Tensor x = weights_.packed_tokens ? packed_rows(weights_.token_embedding, tokens)
                                        : at::embedding(weights_.token_embedding, tokens);
  if (const at::Tensor& scale = weights_.token_embedding_scale; scale.defined())
    x = (x * at::embedding(scale.unsqueeze(1), tokens)).to(dtype());
  const std::int64_t length = tokens.size(1);
  if (cache == nullptr || cache->uniform())
    return x.add_(weights_.position_embedding.narrow(0, cache == nullptr ? 0 : cache->length(), length));
  const at::Tensor& first = cache->cache_seqlens();
  return x.add_(
      at::embedding(weights_.position_embedding, first.unsqueeze(1) + at::arange(length, first.options())));
}

at::Tensor Gpt2::attention(const at::Tensor& x, const LayerWeights& layer, std::int64_t index,
                           Pass& pass) const {
  const std::int64_t batch = x.size(0);
  const std::int64_t length = x.size(1);
  const bool owns = index % weights_.sharing_group == 0;
  // Views into the fused projection: [batch, n_head, T, head_dim] each; queries alone if the layer borrows.
  const at::Tensor projected = linear(x,
                                      {.values = layer.qkv_weight,
                                       .scale = layer.qkv_scale,
                                       .fine_activations = takes_fine_activations(index),
                                       .packed = weights_.packed},
                                      layer.qkv_bias)
                                   .view({batch, length, owns ? 3 : 1, config().n_head, config().head_dim()})
                                   .permute({2, 0, 3, 1, 4});
  const at::Tensor q = projected.select(0, 0);
  if (owns) {
    pass.k = projected.select(0, 1);
    pass.v = projected.select(0, 2);
  }
  // Without a cache PyTorch's own attention: the baseline, and an independent judge of the cached versions.
  const at::Tensor out =
      pass.cache == nullptr ? at::scaled_dot_product_attention(q, pass.k, pass.v, {}, 0.0, /*is_causal=*/true)
                            : cached_attention(q, owns, index, pass);
  const bool lends = pass.cache == nullptr && weights_.sharing_group > 1;
  if (!lends) pass.k = pass.v = at::Tensor();  // or they would take memory while the rest of the layer runs
  return linear(out.transpose(1, 2).reshape({batch, length, config().n_embd}),
                {.values = layer.attn_proj_weight, .scale = layer.attn_proj_scale, .packed = weights_.packed},
                layer.attn_proj_bias);
}

at::Tensor Gpt2::cached_attention(const at::Tensor& q, bool owns, std::int64_t index,
                                  const Pass& pass) const {
  const KvCacheLayer& kv = pass.cache->layer(index);
  const at::Tensor& seqlens = pass.cache->cache_seqlens();
  const at::Tensor& workspace = pass.cache->workspace();
  if (!owns)
    return ops::decode_attention(q, kv.k, kv.v, pass.visible, kv.k_scale, kv.v_scale, std::nullopt,
                                 workspace);
  if (q.size(2) == 1)
    return ops::append_decode_attention(q, pass.k, pass.v, kv.k, kv.v, seqlens, kv.k_scale, kv.v_scale,
                                        std::nullopt, workspace);
  return ops::prefill_attention(q, pass.k, pass.v, kv.k, kv.v, seqlens, kv.k_scale, kv.v_scale);
}

at::Tensor Gpt2::mlp(const at::Tensor& x, const LayerWeights& layer) const {
  const Gelu gelu = weights_.gelu_tanh ? Gelu::kTanh : Gelu::kExact;
  const LinearWeight fc{.values = layer.fc_weight, .scale = layer.fc_scale, .packed = weights_.packed};
  const LinearWeight proj{
      .values = layer.mlp_proj_weight, .scale = layer.mlp_proj_scale, .packed = weights_.packed};
  return linear(linear_gelu(x, fc, layer.fc_bias, gelu), proj, layer.mlp_proj_bias);
}

}  // namespace kvfuse
