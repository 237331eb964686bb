#include "csrc/ops/attention_params.h"

#include <cmath>

#include "csrc/ops/dtype.h"

namespace kvfuse::ops {
namespace {

template <typename Pointer>
TokenView<Pointer> view_of(Pointer data, const at::Tensor& tensor) {
  return {.data = data,
          .dtype = to_dtype(tensor.scalar_type()).value(),
          .batch_stride = tensor.stride(0),
          .head_stride = tensor.stride(1),
          .token_stride = tensor.stride(2)};
}

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

bool has_aligned_rows(const at::Tensor& tensor, std::int64_t alignment) {
  if (reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % static_cast<std::uintptr_t>(alignment) != 0)
    return false;
  for (const std::int64_t dim : {0, 1, 2})
    if (tensor.size(dim) > 1 && tensor.stride(dim) * tensor.element_size() % alignment != 0) return false;
  return true;
}

}  // namespace

at::Tensor with_aligned_rows(const at::Tensor& tensor, std::int64_t alignment) {
  if (tensor.stride(3) == 1 && has_aligned_rows(tensor, alignment)) return tensor;
  return tensor.clone(at::MemoryFormat::Contiguous);
}

ConstTokenView token_view(const at::Tensor& tensor) { return view_of(tensor.const_data_ptr(), tensor); }

AttentionParams attention_params(const at::Tensor& q, const at::Tensor& out, const CacheTensors& cache,
                                 std::optional<double> softmax_scale) {
  const double default_scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  return {.q = token_view(q),
          .k_new = {},
          .v_new = {},
          .out = view_of(out.mutable_data_ptr(), out),
          .cache = cache_view(cache),
          .cache_seqlens = lengths_of(cache),
          .heads = q.size(1),
          .q_len = q.size(2),
          .softmax_scale = static_cast<float>(softmax_scale.value_or(default_scale))};
}

AppendParams append_params(const at::Tensor& k, const at::Tensor& v, const CacheTensors& cache) {
  return {.k_new = token_view(k),
          .v_new = token_view(v),
          .cache = cache_view(cache),
          .cache_seqlens = lengths_of(cache),
          .tokens = k.size(2)};
}

}  // namespace kvfuse::ops
