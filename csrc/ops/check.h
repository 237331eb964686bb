// The rules that the arguments of the operators obey, the same for every implementation.
//
// Each function throws with one sentence that names the operator, the argument, the rule and the value found:
// a TypeError for a dtype, a NotImplementedError for a head size without a kernel, a ValueError otherwise.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace kvfuse::ops {

inline constexpr char kKvAppend[] = "kvfuse::kv_append";
inline constexpr char kDecodeAttention[] = "kvfuse::decode_attention";
inline constexpr char kAppendDecodeAttention[] = "kvfuse::append_decode_attention";
inline constexpr char kPrefillAttention[] = "kvfuse::prefill_attention";
inline constexpr char kQuantizeKv[] = "kvfuse::quantize_kv";
inline constexpr char kDequantizeKv[] = "kvfuse::dequantize_kv";

// One layer's cache as the operators take it; refers to the caller's tensors.
struct CacheTensors {
  const at::Tensor& k_cache;
  const at::Tensor& v_cache;
  const at::Tensor& cache_seqlens;
  const std::optional<at::Tensor>& k_scale;
  const std::optional<at::Tensor>& v_scale;
};

struct NamedTensor {
  const char* name;
  const at::Tensor& tensor;
};

// Shapes, dtypes, devices and strides. These read no element and keep symbolic sizes symbolic.
void check_kv_append(const at::Tensor& k, const at::Tensor& v, const CacheTensors& cache);
void check_decode_attention(const at::Tensor& q, const CacheTensors& cache,
                            std::optional<double> softmax_scale);
void check_append_attention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const CacheTensors& cache, std::optional<double> softmax_scale);
void check_quantize_kv(const at::Tensor& x);
void check_dequantize_kv(const at::Tensor& codes, const at::Tensor& scale, at::ScalarType dtype);

// 0 <= cache_seqlens[b] and cache_seqlens[b] + appended <= capacity. Reads the lengths: host memory only.
void check_lengths(const char* op, const CacheTensors& cache, std::int64_t appended);

// The tensors that an appending operator writes overlap neither each other nor what it reads.
void check_separate_memory(const char* op, const CacheTensors& cache,
                           std::initializer_list<NamedTensor> inputs);

}  // namespace kvfuse::ops
