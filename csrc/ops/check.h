// The rules that the arguments of the operators obey, the same for every implementation.
//
// Each function throws with one sentence that names the operator, the argument, the rule and the value found:
// a TypeError for a dtype, a NotImplementedError for a head size without a kernel, a ValueError otherwise.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "csrc/ops/export.h"

namespace kvfuse::ops {

inline constexpr char kDecodeWorkspace[] = "kvfuse::decode_workspace";
inline constexpr char kKvAppend[] = "kvfuse::kv_append";
inline constexpr char kDecodeAttention[] = "kvfuse::decode_attention";
inline constexpr char kAppendDecodeAttention[] = "kvfuse::append_decode_attention";
inline constexpr char kPrefillAttention[] = "kvfuse::prefill_attention";
inline constexpr char kQuantizeKv[] = "kvfuse::quantize_kv";
inline constexpr char kDequantizeKv[] = "kvfuse::dequantize_kv";
inline constexpr char kLinear[] = "kvfuse::linear";
inline constexpr char kPackWeight[] = "kvfuse::pack_weight";
inline constexpr char kQuantizeWeight[] = "kvfuse::quantize_weight";

// One layer's cache as the operators take it; refers to the caller's tensors.
struct CacheTensors {
  const at::Tensor& k_cache;
  const at::Tensor& v_cache;
  const at::Tensor& cache_seqlens;
  const std::optional<at::Tensor>& k_scale;
  const std::optional<at::Tensor>& v_scale;
};

// What decode_attention and append_decode_attention may be given to write beside the cache.
struct DecodeBuffers {
  const std::optional<at::Tensor>& workspace;
  const std::optional<at::Tensor>& softmax_lse;
};

struct NamedTensor {
  const char* name;
  const at::Tensor& tensor;
};

// PyTorch passes Python's None as an undefined tensor, in some ways of calling.
inline bool is_given(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() && tensor->defined();
}

// Shapes, dtypes, devices and strides. These read no element and keep symbolic sizes symbolic.
KVFUSE_OPS_API void check_decode_workspace(const at::Tensor& q, const at::Tensor& k_cache);
KVFUSE_OPS_API void check_kv_append(const at::Tensor& k, const at::Tensor& v, const CacheTensors& cache);
KVFUSE_OPS_API void check_decode_attention(const at::Tensor& q, const CacheTensors& cache,
                                           std::optional<double> softmax_scale, const DecodeBuffers& buffers);
KVFUSE_OPS_API void check_append_attention(const char* op, const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& v, const CacheTensors& cache,
                                           std::optional<double> softmax_scale, const DecodeBuffers& buffers);
KVFUSE_OPS_API void check_quantize_kv(const at::Tensor& x);
KVFUSE_OPS_API void check_dequantize_kv(const at::Tensor& codes, const at::Tensor& scale,
                                        at::ScalarType dtype);

// 0 <= cache_seqlens[b] and cache_seqlens[b] + appended <= capacity. Reads the lengths: host memory only.
KVFUSE_OPS_API void check_lengths(const char* op, const at::Tensor& cache_seqlens, std::int64_t capacity,
                                  std::int64_t appended);

// The tensors that an appending operator writes overlap neither each other nor what it reads.
KVFUSE_OPS_API void check_separate_memory(const char* op, const CacheTensors& cache,
                                          std::initializer_list<NamedTensor> inputs);
// And the buffers overlap nothing.
KVFUSE_OPS_API void check_separate_buffers(const char* op, const DecodeBuffers& buffers,
                                           const CacheTensors& cache,
                                           std::initializer_list<NamedTensor> inputs);

// The tensor starts where kernels can load whole vectors from it.
KVFUSE_OPS_API void check_aligned(const char* op, const NamedTensor& arg);
// Its place and size. The size is exact: calls of other shapes keep their counters, which have to stay zero,
// elsewhere.
KVFUSE_OPS_API void check_workspace_memory(const char* op, const at::Tensor& workspace,
                                           std::int64_t needed_bytes);

}  // namespace kvfuse::ops
