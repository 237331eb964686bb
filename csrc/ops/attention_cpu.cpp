// The attention operators on the CPU.
#include <torch/library.h>

#include <cmath>

#include "csrc/ops/check.h"
#include "csrc/ops/dtype.h"
#include "csrc/ops/result.h"
#include "kernels/attention.h"

namespace kvfuse::ops {
namespace {

// The kernels take any strides but that of the last dimension.
at::Tensor with_contiguous_rows(const at::Tensor& tensor) {
  return tensor.stride(3) == 1 ? tensor : tensor.contiguous();
}

template <typename Pointer>
TokenView<Pointer> token_view(Pointer data, const at::Tensor& tensor) {
  return {.data = data,
          .dtype = to_dtype(tensor.scalar_type()).value(),
          .batch_stride = tensor.stride(0),
          .head_stride = tensor.stride(1),
          .token_stride = tensor.stride(2)};
}

ConstTokenView token_view(const at::Tensor& tensor) { return token_view(tensor.const_data_ptr(), tensor); }

// The views have no const form: const_cast for the caches that decode_attention only reads.
CacheView cache_view(const CacheTensors& cache) {
  const at::Tensor& k_cache = cache.k_cache;
  const bool is_int8 = k_cache.scalar_type() == at::kChar;
  return {.k = const_cast<void*>(k_cache.const_data_ptr()),
          .v = const_cast<void*>(cache.v_cache.const_data_ptr()),
          .k_scale = is_int8 ? const_cast<float*>(cache.k_scale->const_data_ptr<float>()) : nullptr,
          .v_scale = is_int8 ? const_cast<float*>(cache.v_scale->const_data_ptr<float>()) : nullptr,
          .dtype = to_dtype(k_cache.scalar_type()).value(),
          .batch = k_cache.size(0),
          .kv_heads = k_cache.size(1),
          .capacity = k_cache.size(2),
          .head_dim = k_cache.size(3)};
}

const std::int32_t* lengths_of(const CacheTensors& cache) {
  return cache.cache_seqlens.const_data_ptr<std::int32_t>();
}

// Everything but k_new and v_new.
AttentionParams attention_params(const at::Tensor& q, const at::Tensor& out, const CacheTensors& cache,
                                 std::optional<double> softmax_scale) {
  const double default_scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  return {.q = token_view(q),
          .k_new = {},
          .v_new = {},
          .out = token_view(out.mutable_data_ptr(), out),
          .cache = cache_view(cache),
          .cache_seqlens = lengths_of(cache),
          .heads = q.size(1),
          .q_len = q.size(2),
          .softmax_scale = static_cast<float>(softmax_scale.value_or(default_scale))};
}

void kv_append(const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache, const at::Tensor& v_cache,
               const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
               const std::optional<at::Tensor>& v_scale) {
  const CacheTensors cache{k_cache, v_cache, cache_seqlens, k_scale, v_scale};
  check_kv_append(k, v, cache);
  check_lengths(kKvAppend, cache, k.size(2));
  check_separate_memory(kKvAppend, cache, {{"k", k}, {"v", v}});
  if (k.numel() == 0) return;
  const at::Tensor k_rows = with_contiguous_rows(k);
  const at::Tensor v_rows = with_contiguous_rows(v);
  cpu::kv_append({.k_new = token_view(k_rows),
                  .v_new = token_view(v_rows),
                  .cache = cache_view(cache),
                  .cache_seqlens = lengths_of(cache),
                  .tokens = k.size(2)});
}

at::Tensor decode_attention(const at::Tensor& q, const at::Tensor& k_cache, const at::Tensor& v_cache,
                            const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
                            const std::optional<at::Tensor>& v_scale, std::optional<double> softmax_scale) {
  const CacheTensors cache{k_cache, v_cache, cache_seqlens, k_scale, v_scale};
  check_decode_attention(q, cache, softmax_scale);
  check_lengths(kDecodeAttention, cache, 0);
  at::Tensor out = empty_attention_result(q);
  if (q.numel() == 0) return out;
  const at::Tensor q_rows = with_contiguous_rows(q);
  cpu::decode_attention(attention_params(q_rows, out, cache, softmax_scale));
  return out;
}

template <const char* kOp, void (*kLaunch)(const AttentionParams&)>
at::Tensor append_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& k_cache, const at::Tensor& v_cache,
                            const at::Tensor& cache_seqlens, const std::optional<at::Tensor>& k_scale,
                            const std::optional<at::Tensor>& v_scale, std::optional<double> softmax_scale) {
  const CacheTensors cache{k_cache, v_cache, cache_seqlens, k_scale, v_scale};
  check_append_attention(kOp, q, k, v, cache, softmax_scale);
  check_lengths(kOp, cache, q.size(2));
  check_separate_memory(kOp, cache, {{"q", q}, {"k", k}, {"v", v}});
  at::Tensor out = empty_attention_result(q);
  if (q.numel() == 0) return out;
  const at::Tensor q_rows = with_contiguous_rows(q);
  const at::Tensor k_rows = with_contiguous_rows(k);
  const at::Tensor v_rows = with_contiguous_rows(v);
  AttentionParams params = attention_params(q_rows, out, cache, softmax_scale);
  params.k_new = token_view(k_rows);
  params.v_new = token_view(v_rows);
  kLaunch(params);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, CPU, m) {
  m.impl("kv_append", &kv_append);
  m.impl("decode_attention", &decode_attention);
  m.impl("append_decode_attention", &append_attention<kAppendDecodeAttention, &cpu::decode_attention>);
  m.impl("prefill_attention", &append_attention<kPrefillAttention, &cpu::prefill_attention>);
}

}  // namespace kvfuse::ops
