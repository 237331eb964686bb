#include "csrc/ops/ops.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "csrc/ops/check.h"

namespace kvfuse::ops {
namespace {

template <typename Function>
c10::TypedOperatorHandle<Function> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

void kv_append(const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache, const at::Tensor& v_cache,
               const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
               const std::optional<at::Tensor>& v_scale) {
  static const auto op = find<decltype(kv_append)>(kKvAppend);
  op.call(k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale);
}

at::Tensor decode_workspace(const at::Tensor& q, const at::Tensor& k_cache) {
  static const auto op = find<decltype(decode_workspace)>(kDecodeWorkspace);
  return op.call(q, k_cache);
}

at::Tensor decode_attention(const at::Tensor& q, const at::Tensor& k_cache, const at::Tensor& v_cache,
                            const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
                            const std::optional<at::Tensor>& v_scale, std::optional<double> softmax_scale,
                            const std::optional<at::Tensor>& workspace,
                            const std::optional<at::Tensor>& softmax_lse) {
  static const auto op = find<decltype(decode_attention)>(kDecodeAttention);
  return op.call(q, k_cache, v_cache, cache_seqlens, k_scale, v_scale, softmax_scale, workspace, softmax_lse);
}

at::Tensor append_decode_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const at::Tensor& k_cache, const at::Tensor& v_cache,
                                   const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
                                   const std::optional<at::Tensor>& v_scale,
                                   std::optional<double> softmax_scale,
                                   const std::optional<at::Tensor>& workspace,
                                   const std::optional<at::Tensor>& softmax_lse) {
  static const auto op = find<decltype(append_decode_attention)>(kAppendDecodeAttention);
  return op.call(q, k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale, softmax_scale, workspace,
                 softmax_lse);
}

at::Tensor prefill_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& k_cache, const at::Tensor& v_cache,
                             const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
                             const std::optional<at::Tensor>& v_scale, std::optional<double> softmax_scale) {
  static const auto op = find<decltype(prefill_attention)>(kPrefillAttention);
  return op.call(q, k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale, softmax_scale);
}

std::tuple<at::Tensor, at::Tensor> quantize_kv(const at::Tensor& x) {
  static const auto op = find<decltype(quantize_kv)>(kQuantizeKv);
  return op.call(x);
}

at::Tensor dequantize_kv(const at::Tensor& codes, const at::Tensor& scale, at::ScalarType dtype) {
  static const auto op = find<decltype(dequantize_kv)>(kDequantizeKv);
  return op.call(codes, scale, dtype);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& weight_scale, const std::optional<at::Tensor>& norm_weight,
                  const std::optional<at::Tensor>& norm_bias, double norm_epsilon, c10::string_view gelu,
                  bool fine_activations, bool packed) {
  static const auto op = find<decltype(linear)>(kLinear);
  return op.call(x, weight, bias, weight_scale, norm_weight, norm_bias, norm_epsilon, gelu, fine_activations,
                 packed);
}

at::Tensor pack_weight(const at::Tensor& weight) {
  static const auto op = find<decltype(pack_weight)>(kPackWeight);
  return op.call(weight);
}

std::tuple<at::Tensor, at::Tensor> quantize_weight(const at::Tensor& weight, c10::string_view format) {
  static const auto op = find<decltype(quantize_weight)>(kQuantizeWeight);
  return op.call(weight, format);
}

}  // namespace kvfuse::ops
