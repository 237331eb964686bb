// The operations of a GPT-2 decode step in order, from token to logits, for any backend: what they hand to
// one another, and their parameters.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/decode_step.h"
#include "kernels/embedding.h"
#include "kernels/linear.h"

namespace kvfuse {

inline bool step_has_sizes(const DecodeStepParams& p) {
  return p.batch > 0 && p.n_embd > 0 && p.n_head > 0 && p.n_embd % p.n_head == 0;
}

// Whether the caches fit the model and one another. Sizes are checked before.
inline bool step_is_valid(const DecodeStepParams& p) {
  if (p.workspace == nullptr || p.logits == nullptr) return false;
  for (const CacheView& cache : p.caches)
    if (cache.batch != p.batch || cache.kv_heads != p.n_head || cache.head_dim * p.n_head != p.n_embd)
      return false;
  for (const Gpt2LayerPointers& layer : p.layers)
    if (layer.cache_layer < 0 || layer.cache_layer >= static_cast<std::int64_t>(p.caches.size()))
      return false;
  return true;
}

// Rows that the operations of a step hand to one another, cut from the workspace; from a null one they are
// only counted.
struct StepBuffers {
  void* attention_workspace = nullptr;
  float* x = nullptr;        // [batch, n_embd]: the residual stream
  void* qkv = nullptr;       // [batch, 3 * n_embd], of a layer that does not append [batch, n_embd]
  void* attended = nullptr;  // [batch, n_embd]
  void* hidden = nullptr;    // [batch, 4 * n_embd]
  std::int32_t* visible_seqlens = nullptr;  // [batch]: cache_seqlens plus the token of this step
  std::int64_t bytes = 0;

  StepBuffers(const DecodeStepParams& p, void* workspace, std::int64_t attention_bytes)
      : workspace_(static_cast<char*>(workspace)) {
    cut(attention_workspace, attention_bytes);
    cut(x, p.batch * p.n_embd * static_cast<std::int64_t>(sizeof(float)));
    cut(qkv, 3 * p.batch * p.n_embd * element_bytes(p.dtype));
    cut(attended, p.batch * p.n_embd * element_bytes(p.dtype));
    cut(hidden, 4 * p.batch * p.n_embd * element_bytes(p.dtype));
    cut(visible_seqlens, p.batch * static_cast<std::int64_t>(sizeof(std::int32_t)));
  }

 private:
  static constexpr std::int64_t kAlignment = 256;  // that of an allocation on a CUDA device

  template <typename T>
  void cut(T*& buffer, std::int64_t size) {
    if (workspace_ != nullptr) buffer = reinterpret_cast<T*>(workspace_ + bytes);
    bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
  }

  char* workspace_;
};

// `Backend` has a type Status, `bool done(Status)`, `void begins(Phase)`, and embed(EmbeddingParams),
// linear(LinearParams) and attend(AttentionParams), which return a Status.
template <typename Backend>
class StepSequence {
 public:
  using Status = typename Backend::Status;

  StepSequence(const DecodeStepParams& params, const StepBuffers& buffers, const Backend& backend)
      : p_(params), buffers_(buffers), backend_(backend) {}

  // From token to logits. Returns the first status that is not done; what precedes it has run.
  Status run() const {
    backend_.begins(Phase::kEmbedding);
    Status status = embed();
    for (const Gpt2LayerPointers& layer : p_.layers)
      if (backend_.done(status)) status = run(layer);
    backend_.begins(Phase::kHead);
    if (backend_.done(status))
      status =
          from_stream({p_.ln_f_weight, p_.ln_f_bias},
                      {p_.token_embedding, p_.token_embedding_scale, nullptr, p_.vocab_size, p_.token_format},
                      p_.logits, DType::kFloat32, Epilogue::kStore, /*fine_activations=*/true);
    backend_.begins(Phase::kOther);
    return status;
  }

 private:
  struct Norm {
    const void* weight;
    const void* bias;
  };
  struct Linear {
    const void* weight;
    const void* scale;
    const void* bias;
    std::int64_t out_size;
    WeightFormat format;
  };

  Status embed() const {
    return backend_.embed({.token_embedding = p_.token_embedding,
                           .token_embedding_scale = p_.token_embedding_scale,
                           .position_embedding = p_.position_embedding,
                           .tokens = p_.tokens,
                           .cache_seqlens = p_.cache_seqlens,
                           .x = buffers_.x,
                           .visible_seqlens = buffers_.visible_seqlens,
                           .dtype = p_.dtype,
                           .token_format = p_.token_format,
                           .batch = p_.batch,
                           .width = p_.n_embd,
                           .vocab_size = p_.vocab_size,
                           .positions = p_.block_size});
  }

  // out = epilogue(linear(layernorm(residual stream)))
  Status from_stream(const Norm& norm, const Linear& linear, void* out, DType out_dtype,
                     Epilogue epilogue = Epilogue::kStore, bool fine_activations = false) const {
    return backend_.linear({.x = buffers_.x,
                            .weight = linear.weight,
                            .weight_scale = linear.scale,
                            .bias = linear.bias,
                            .norm_weight = norm.weight,
                            .norm_bias = norm.bias,
                            .out = out,
                            .dtype = p_.dtype,
                            .out_dtype = out_dtype,
                            .weight_format = linear.format,
                            .epilogue = epilogue,
                            .fine_activations = fine_activations,
                            .rows = p_.batch,
                            .in = p_.n_embd,
                            .out_size = linear.out_size});
  }

  // residual stream += linear(x)
  Status into_stream(const void* x, std::int64_t in, const Linear& linear) const {
    return backend_.linear({.x = x,
                            .weight = linear.weight,
                            .weight_scale = linear.scale,
                            .bias = linear.bias,
                            .out = buffers_.x,
                            .dtype = p_.dtype,
                            .out_dtype = DType::kFloat32,
                            .weight_format = linear.format,
                            .epilogue = Epilogue::kAdd,
                            .rows = p_.batch,
                            .in = in,
                            .out_size = linear.out_size});
  }

  Status attend(const Gpt2LayerPointers& layer) const {
    const CacheView& cache = p_.caches[static_cast<std::size_t>(layer.cache_layer)];
    const std::int64_t width = layer.appends ? 3 * p_.n_embd : p_.n_embd;  // of a row of qkv
    const auto rows = [&](std::int64_t part) {
      const char* data = static_cast<const char*>(buffers_.qkv) + part * p_.n_embd * element_bytes(p_.dtype);
      return ConstTokenView{data, p_.dtype, width, cache.head_dim, width};
    };
    const AttentionParams attention{
        .q = rows(0),
        .k_new = layer.appends ? rows(1) : ConstTokenView{},
        .v_new = layer.appends ? rows(2) : ConstTokenView{},
        .out = {buffers_.attended, p_.dtype, p_.n_embd, cache.head_dim, p_.n_embd},
        .cache = cache,
        .cache_seqlens = layer.appends ? p_.cache_seqlens : buffers_.visible_seqlens,
        .heads = p_.n_head,
        .q_len = 1,
        .softmax_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(cache.head_dim)))};
    return backend_.attend(attention);
  }

  // The five kernels of a layer.
  Status run(const Gpt2LayerPointers& layer) const {
    const std::int64_t n = p_.n_embd;
    const Epilogue gelu = p_.gelu_tanh ? Epilogue::kGeluTanh : Epilogue::kGeluExact;
    backend_.begins(Phase::kAttention);
    Status status = from_stream({layer.ln_1_weight, layer.ln_1_bias},
                                {layer.qkv_weight, layer.qkv_weight_scale, layer.qkv_bias,
                                 layer.appends ? 3 * n : n, p_.layer_format},
                                buffers_.qkv, p_.dtype, Epilogue::kStore,
                                takes_fine_activations(&layer - p_.layers.data()));
    if (backend_.done(status)) status = attend(layer);
    if (backend_.done(status))
      status = into_stream(
          buffers_.attended, n,
          {layer.attn_proj_weight, layer.attn_proj_weight_scale, layer.attn_proj_bias, n, p_.layer_format});
    backend_.begins(Phase::kMlp);
    if (backend_.done(status))
      status = from_stream({layer.ln_2_weight, layer.ln_2_bias},
                           {layer.fc_weight, layer.fc_weight_scale, layer.fc_bias, 4 * n, p_.layer_format},
                           buffers_.hidden, p_.dtype, gelu);
    if (backend_.done(status))
      status = into_stream(
          buffers_.hidden, 4 * n,
          {layer.mlp_proj_weight, layer.mlp_proj_weight_scale, layer.mlp_proj_bias, n, p_.layer_format});
    return status;
  }

  const DecodeStepParams& p_;
  const StepBuffers& buffers_;
  const Backend backend_;
};

}  // namespace kvfuse
