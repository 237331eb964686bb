// The operators as typed C++ functions. Each call goes through PyTorch's dispatcher, like torch.ops.kvfuse.*.
//
// One layer's cache:
//   k_cache, v_cache  [batch, kv_heads, capacity, head_dim], contiguous, of the dtype of q (k) or int8
//   k_scale, v_scale  [batch, kv_heads, capacity], float32, contiguous, none negative; given exactly with an
//                     int8 cache
//   cache_seqlens     [batch], int32, contiguous: tokens in the cache. No operator advances it, the caller
//                     does.
// New tokens:
//   q                 [batch, heads, q_len, head_dim], float32, bfloat16 or float16, any strides; heads is a
//                     multiple of kv_heads, and query head h reads cache head h / (heads / kv_heads)
//   k, v              [batch, kv_heads, q_len, head_dim], of the dtype of q, any strides
// Scratch memory:
//   workspace         what decode_workspace gave for q and k_cache: CUDA splits a long cache among blocks
//                     that meet there. It is all zeros between calls. Without it a call allocates one.
// Results of decode attention over separate caches are merged by
//   softmax_lse       float32 [batch, heads, q_len], contiguous, written: the natural logarithm of each
//                     query's sum of exp(score), -infinity where it sees no token
// Attention is causal, and softmax_scale is 1 / sqrt(head_dim) if absent. The result is like q and laid out
// as [batch, q_len, heads, head_dim]: its transpose(1, 2) is contiguous.
//
// On CUDA the caches and scales start at multiples of 16 bytes. The tensors are all on one device. Each call
// looks at cache_seqlens, which on CUDA waits for the device: see TrustLengths (trust_lengths.h).
//
// Errors are c10::Error and its kinds: TypeError (a dtype), NotImplementedError (a head_dim without a kernel;
// a tensor that requires a gradient while gradients are recorded: prefill_attention alone has one, in q, k
// and v, with a cache of their dtype) and ValueError (all else). A call that fails leaves the cache as it
// was.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "csrc/ops/export.h"

namespace kvfuse::ops {

// Writes k and v into the cache behind the cache_seqlens[b] tokens of each sequence, quantised if it is int8.
// An error if cache_seqlens[b] + q_len exceeds the capacity.
KVFUSE_OPS_API void kv_append(const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache,
                              const at::Tensor& v_cache, const at::Tensor& cache_seqlens,
                              const std::optional<at::Tensor>& k_scale = std::nullopt,
                              const std::optional<at::Tensor>& v_scale = std::nullopt);

// Scratch memory for one call at a time of decode_attention or append_decode_attention on `k_cache`, with
// queries of at most the q_len of `q`: uint8, zeros, as large as the device needs, empty for the CPU.
KVFUSE_OPS_API at::Tensor decode_workspace(const at::Tensor& q, const at::Tensor& k_cache);

// Attends to the first cache_seqlens[b] tokens, the last q_len of which belong to q: query t sees the first
// cache_seqlens[b] - q_len + t + 1. A query that sees none gives zeros.
KVFUSE_OPS_API at::Tensor decode_attention(const at::Tensor& q, const at::Tensor& k_cache,
                                           const at::Tensor& v_cache, const at::Tensor& cache_seqlens,
                                           const std::optional<at::Tensor>& k_scale = std::nullopt,
                                           const std::optional<at::Tensor>& v_scale = std::nullopt,
                                           std::optional<double> softmax_scale = std::nullopt,
                                           const std::optional<at::Tensor>& workspace = std::nullopt,
                                           const std::optional<at::Tensor>& softmax_lse = std::nullopt);

// kv_append, then attention to all cache_seqlens[b] + q_len tokens, in one pass. For a few query tokens.
// The new tokens too are attended to as the cache holds them.
KVFUSE_OPS_API at::Tensor append_decode_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache,
    const at::Tensor& v_cache, const at::Tensor& cache_seqlens,
    const std::optional<at::Tensor>& k_scale = std::nullopt,
    const std::optional<at::Tensor>& v_scale = std::nullopt,
    std::optional<double> softmax_scale = std::nullopt,
    const std::optional<at::Tensor>& workspace = std::nullopt,
    const std::optional<at::Tensor>& softmax_lse = std::nullopt);

// The same for many query tokens, such as a prompt.
KVFUSE_OPS_API at::Tensor prefill_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                            const at::Tensor& k_cache, const at::Tensor& v_cache,
                                            const at::Tensor& cache_seqlens,
                                            const std::optional<at::Tensor>& k_scale = std::nullopt,
                                            const std::optional<at::Tensor>& v_scale = std::nullopt,
                                            std::optional<double> softmax_scale = std::nullopt);

// x [..., width] of float32, bfloat16 or float16 -> int8 codes [..., width] in [-127, 127] and float32 scales
// [...] = absmax / 127 of each row. A row of zeros has scale 0; one that holds a NaN or infinity has scale
// NaN.
KVFUSE_OPS_API std::tuple<at::Tensor, at::Tensor> quantize_kv(const at::Tensor& x);

// codes [..., width] * scale [...] -> [..., width] of `dtype` (float32, bfloat16 or float16).
KVFUSE_OPS_API at::Tensor dequantize_kv(const at::Tensor& codes, const at::Tensor& scale,
                                        at::ScalarType dtype);

// gelu(linear(layernorm(x))) of x [..., in] (float32, bfloat16 or float16, any strides): [..., out], of its
// dtype. CPU only. All else is contiguous, bias [out] and the norm's parameters [in] of the dtype of x; no
// layernorm without norm_weight. The weight is [out, in] of the dtype of x, or what quantize_weight gave:
// then rows of x are rounded too, and products are sums of integers; beside int8 codes to eight bits, or with
// `fine_activations` to 13 to 15 (docs/numerics.md). `packed`: the weight is what pack_weight gave, and so
// are scales of int4 codes, flattened, which tells them from others; that is faster, of floats from two rows
// on. More than 32 rows of bfloat16 beside another weight go to ATen where the machine multiplies bfloat16.
// `gelu`: "none", "tanh" or "exact".
KVFUSE_OPS_API at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                                 const std::optional<at::Tensor>& bias = std::nullopt,
                                 const std::optional<at::Tensor>& weight_scale = std::nullopt,
                                 const std::optional<at::Tensor>& norm_weight = std::nullopt,
                                 const std::optional<at::Tensor>& norm_bias = std::nullopt,
                                 double norm_epsilon = 1e-5, c10::string_view gelu = "none",
                                 bool fine_activations = false, bool packed = false);

// weight [out, in] of float32, bfloat16, float16 or int8 (codes, `in` a multiple of 4), or int4 codes (uint8
// [out, in / 2], `in` a multiple of 32), any strides -> the same values in the order of WeightFormat's panels
// (kernels/weight_format.h), of the same shape. CPU only.
KVFUSE_OPS_API at::Tensor pack_weight(const at::Tensor& weight);

// weight [out, in] of float32, bfloat16 or float16 -> codes and scales. "int8": int8 codes [out, in] in
// [-127, 127] and float32 scales [out] = absmax / 127. "int4": two codes a byte, uint8 [out, in / 2], and
// float16 scales [out, in / 32] of groups of 32 inputs (kernels/weight_format.h). An error if a row holds NaN
// or an infinity. CPU only.
KVFUSE_OPS_API std::tuple<at::Tensor, at::Tensor> quantize_weight(const at::Tensor& weight,
                                                                  c10::string_view format);

}  // namespace kvfuse::ops
