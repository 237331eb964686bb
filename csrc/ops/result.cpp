#include "csrc/ops/result.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <array>

namespace kvfuse::ops {

at::Tensor empty_attention_result(const at::Tensor& q) {
  const c10::SymInt heads = q.sym_size(1);
  const c10::SymInt head_dim = q.sym_size(3);
  const std::array<c10::SymInt, 4> strides = {q.sym_size(2) * heads * head_dim, head_dim, heads * head_dim,
                                              1};
  return at::empty_strided_symint(q.sym_sizes(), strides, q.options());
}

std::pair<at::Tensor, at::Tensor> empty_quantized(const at::Tensor& x) {
  return {at::empty_symint(x.sym_sizes(), x.options().dtype(at::kChar)),
          at::empty_symint(x.sym_sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat))};
}

at::Tensor empty_dequantized(const at::Tensor& codes, at::ScalarType dtype) {
  return at::empty_symint(codes.sym_sizes(), codes.options().dtype(dtype));
}

}  // namespace kvfuse::ops
