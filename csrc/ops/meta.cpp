// What comes out of the operators, without data: for fake tensors, torch.compile and torch.export. That of
// decode_workspace is in Python: its size is the device's affair, so a trace has to leave it open.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "csrc/ops/check.h"
#include "csrc/ops/linear_check.h"
#include "csrc/ops/result.h"

namespace kvfuse::ops {
namespace {

void kv_append(const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache, const at::Tensor& v_cache,
               const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
               const std::optional<at::Tensor>& v_scale) {
  check_kv_append(k, v, {k_cache, v_cache, cache_seqlens, k_scale, v_scale});
}

at::Tensor decode_attention(const at::Tensor& q, const at::Tensor& k_cache, const at::Tensor& v_cache,
                            const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
                            const std::optional<at::Tensor>& v_scale, std::optional<double> softmax_scale,
                            const std::optional<at::Tensor>& workspace,
                            const std::optional<at::Tensor>& softmax_lse) {
  check_decode_attention(q, {k_cache, v_cache, cache_seqlens, k_scale, v_scale}, softmax_scale,
                         {workspace, softmax_lse});
  return empty_attention_result(q);
}

at::Tensor append_decode_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const at::Tensor& k_cache, const at::Tensor& v_cache,
                                   const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
                                   const std::optional<at::Tensor>& v_scale,
                                   std::optional<double> softmax_scale,
                                   const std::optional<at::Tensor>& workspace,
                                   const std::optional<at::Tensor>& softmax_lse) {
  check_append_attention(kAppendDecodeAttention, q, k, v, {k_cache, v_cache, cache_seqlens, k_scale, v_scale},
                         softmax_scale, {workspace, softmax_lse});
  return empty_attention_result(q);
}

at::Tensor prefill_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& k_cache, const at::Tensor& v_cache,
                             const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
                             const std::optional<at::Tensor>& v_scale, std::optional<double> softmax_scale) {
  check_append_attention(kPrefillAttention, q, k, v, {k_cache, v_cache, cache_seqlens, k_scale, v_scale},
                         softmax_scale, {std::nullopt, std::nullopt});
  return empty_attention_result(q);
}

std::tuple<at::Tensor, at::Tensor> quantize_kv(const at::Tensor& x) {
  check_quantize_kv(x);
  return empty_quantized(x);
}

at::Tensor dequantize_kv(const at::Tensor& codes, const at::Tensor& scale, at::ScalarType dtype) {
  check_dequantize_kv(codes, scale, dtype);
  return empty_dequantized(codes, dtype);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& weight_scale, const std::optional<at::Tensor>& norm_weight,
                  const std::optional<at::Tensor>& norm_bias, double norm_epsilon, c10::string_view gelu,
                  bool /*fine_activations*/, bool packed) {
  check_linear({x, weight, bias, weight_scale, norm_weight, norm_bias, norm_epsilon, gelu, packed});
  return empty_linear_result(x, weight);
}

at::Tensor pack_weight(const at::Tensor& weight) {
  check_pack_weight(weight);
  return at::empty_symint(weight.sym_sizes(), weight.options());
}

std::tuple<at::Tensor, at::Tensor> quantize_weight(const at::Tensor& weight, c10::string_view format) {
  check_quantize_weight(weight, format);
  return empty_quantized_weight(weight, format);
}

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, Meta, m) {
  m.impl("kv_append", &kv_append);
  m.impl("decode_attention", &decode_attention);
  m.impl("append_decode_attention", &append_decode_attention);
  m.impl("prefill_attention", &prefill_attention);
  m.impl("quantize_kv", &quantize_kv);
  m.impl("dequantize_kv", &dequantize_kv);
  m.impl("linear", &linear);
  m.impl("pack_weight", &pack_weight);
  m.impl("quantize_weight", &quantize_weight);
}

}  // namespace kvfuse::ops
