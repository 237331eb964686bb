// Host code: the kernels of a GPT-2 decode step in order.
#include "kernels/cuda/decode_step.h"

#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sampling.h"

namespace kvfuse::cuda {
namespace {

constexpr std::int64_t kBufferAlignment = 256;  // that of a device allocation

// What the kernels of a step hand to one another, cut from the workspace.
struct Buffers {
  void* attention_workspace;
  float* x;                       // [batch, n_embd]: the residual stream
  void* qkv;                      // [batch, 3 * n_embd], of a layer that does not append [batch, n_embd]
  void* attended;                 // [batch, n_embd]
  void* hidden;                   // [batch, 4 * n_embd]
  std::int32_t* visible_seqlens;  // [batch]: cache_seqlens plus the token of this step
};

// Hands out consecutive buffers; from a null workspace it only counts.
struct Cutter {
  char* workspace;
  std::int64_t used = 0;

  template <typename T>
  void cut(T*& buffer, std::int64_t bytes) {
    buffer = workspace == nullptr ? nullptr : reinterpret_cast<T*>(workspace + used);
    used += (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  }
};

std::int64_t cut_buffers(const DecodeStepParams& p, void* workspace, Buffers& buffers) {
  Cutter cutter{static_cast<char*>(workspace)};
  const auto cut_rows = [&](auto*& buffer, std::int64_t width, std::int64_t element) {
    cutter.cut(buffer, p.batch * width * element);
  };
  cutter.cut(buffers.attention_workspace,
             decode_workspace_bytes(p.batch, p.n_head, /*query_rows=*/1, p.n_embd / p.n_head, p.splits));
  cut_rows(buffers.x, p.n_embd, sizeof(float));
  cut_rows(buffers.qkv, 3 * p.n_embd, element_bytes(p.dtype));
  cut_rows(buffers.attended, p.n_embd, element_bytes(p.dtype));
  cut_rows(buffers.hidden, 4 * p.n_embd, element_bytes(p.dtype));
  cut_rows(buffers.visible_seqlens, 1, sizeof(std::int32_t));
  return cutter.used;
}

bool has_sizes(const DecodeStepParams& p) {
  return p.batch > 0 && p.n_embd > 0 && p.n_head > 0 && p.n_embd % p.n_head == 0 && p.splits > 0;
}

bool is_valid(const DecodeStepParams& p) {
  if (!has_sizes(p) || p.workspace == nullptr || p.logits == nullptr) return false;
  for (const CacheView& cache : p.caches)
    if (cache.batch != p.batch || cache.kv_heads != p.n_head || cache.head_dim * p.n_head != p.n_embd)
      return false;
  for (const Gpt2LayerPointers& layer : p.layers)
    if (layer.cache_layer < 0 || layer.cache_layer >= static_cast<std::int64_t>(p.caches.size()))
      return false;
  return true;
}

// The kernels of one step. Each returns the launch's error.
struct Step {
  const DecodeStepParams& p;
  const Buffers& buffers;
  cudaStream_t stream;

  cudaError_t embed() const {
    return cuda::embed({.token_embedding = p.token_embedding,
                        .position_embedding = p.position_embedding,
                        .tokens = p.tokens,
                        .cache_seqlens = p.cache_seqlens,
                        .x = buffers.x,
                        .visible_seqlens = buffers.visible_seqlens,
                        .dtype = p.dtype,
                        .batch = p.batch,
                        .width = p.n_embd,
                        .vocab_size = p.vocab_size,
                        .positions = p.block_size},
                       p.overlap_previous, stream);
  }

  struct Norm {
    const void* weight;
    const void* bias;
  };
  struct Linear {
    const void* weight;
    const void* bias;
    std::int64_t out_size;
  };

  // out = epilogue(linear(layernorm(residual stream)))
  cudaError_t from_stream(const Norm& norm, const Linear& linear, void* out, DType out_dtype,
                          Epilogue epilogue = Epilogue::kStore) const {
    return fused_linear({.x = buffers.x,
                         .weight = linear.weight,
                         .bias = linear.bias,
                         .norm_weight = norm.weight,
                         .norm_bias = norm.bias,
                         .out = out,
                         .dtype = p.dtype,
                         .out_dtype = out_dtype,
                         .epilogue = epilogue,
                         .rows = p.batch,
                         .in = p.n_embd,
                         .out_size = linear.out_size},
                        p.overlap_previous, stream);
  }

  // residual stream += linear(x)
  cudaError_t into_stream(const void* x, std::int64_t in, const Linear& linear) const {
    return fused_linear({.x = x,
                         .weight = linear.weight,
                         .bias = linear.bias,
                         .out = buffers.x,
                         .dtype = p.dtype,
                         .out_dtype = DType::kFloat32,
                         .epilogue = Epilogue::kAdd,
                         .rows = p.batch,
                         .in = in,
                         .out_size = linear.out_size},
                        p.overlap_previous, stream);
  }

  cudaError_t attend(const Gpt2LayerPointers& layer) const {
    const CacheView& cache = p.caches[static_cast<std::size_t>(layer.cache_layer)];
    const std::int64_t width = layer.appends ? 3 * p.n_embd : p.n_embd;  // of a row of qkv
    const auto rows = [&](std::int64_t part) {
      const char* data = static_cast<const char*>(buffers.qkv) + part * p.n_embd * element_bytes(p.dtype);
      return ConstTokenView{data, p.dtype, width, cache.head_dim, width};
    };
    const AttentionParams attention{
        .q = rows(0),
        .k_new = layer.appends ? rows(1) : ConstTokenView{},
        .v_new = layer.appends ? rows(2) : ConstTokenView{},
        .out = {buffers.attended, p.dtype, p.n_embd, cache.head_dim, p.n_embd},
        .cache = cache,
        .cache_seqlens = layer.appends ? p.cache_seqlens : buffers.visible_seqlens,
        .heads = p.n_head,
        .q_len = 1,
        .softmax_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(cache.head_dim)))};
    DecodeOptions options;
    options.workspace = buffers.attention_workspace;
    options.splits = p.splits;
    options.overlap_previous = p.overlap_previous;
    return decode_attention(attention, options, stream);
  }

  // The five kernels of a layer.
  cudaError_t run(const Gpt2LayerPointers& layer) const {
    const std::int64_t n = p.n_embd;
    const Epilogue gelu = p.gelu_tanh ? Epilogue::kGeluTanh : Epilogue::kGeluExact;
    cudaError_t error =
        from_stream({layer.ln_1_weight, layer.ln_1_bias},
                    {layer.qkv_weight, layer.qkv_bias, layer.appends ? 3 * n : n}, buffers.qkv, p.dtype);
    if (error == cudaSuccess) error = attend(layer);
    if (error == cudaSuccess)
      error = into_stream(buffers.attended, n, {layer.attn_proj_weight, layer.attn_proj_bias, n});
    if (error == cudaSuccess)
      error = from_stream({layer.ln_2_weight, layer.ln_2_bias}, {layer.fc_weight, layer.fc_bias, 4 * n},
                          buffers.hidden, p.dtype, gelu);
    if (error == cudaSuccess)
      error = into_stream(buffers.hidden, 4 * n, {layer.mlp_proj_weight, layer.mlp_proj_bias, n});
    return error;
  }

  cudaError_t choose() const {
    return sample({.logits = p.logits,
                   .tokens = p.tokens,
                   .out_tokens = p.out_tokens,
                   .steps = p.steps,
                   .cache_seqlens = p.cache_seqlens,
                   .batch = p.batch,
                   .vocab_size = p.vocab_size,
                   .out_capacity = p.out_capacity,
                   .temperature = p.temperature,
                   .top_k = p.top_k,
                   .top_p = p.top_p,
                   .seed = p.seed},
                  p.overlap_previous, stream);
  }
};

}  // namespace

std::int64_t decode_step_workspace_bytes(const DecodeStepParams& p) {
  Buffers none{};
  return has_sizes(p) ? cut_buffers(p, nullptr, none) : 0;
}

cudaError_t enqueue_decode_step(const DecodeStepParams& p, cudaStream_t stream) {
  if (!is_valid(p)) return cudaErrorInvalidValue;
  Buffers buffers{};
  cut_buffers(p, p.workspace, buffers);
  const Step step{p, buffers, stream};
  cudaError_t error = step.embed();
  for (const Gpt2LayerPointers& layer : p.layers)
    if (error == cudaSuccess) error = step.run(layer);
  if (error == cudaSuccess)
    error = step.from_stream({p.ln_f_weight, p.ln_f_bias}, {p.token_embedding, nullptr, p.vocab_size},
                             p.logits, DType::kFloat32);
  if (error == cudaSuccess) error = step.choose();
  return error;
}

}  // namespace kvfuse::cuda
