// The quantisation operators on the CPU.
#include "kernels/kv_quant.h"

#include <torch/library.h>

#include <tuple>

#include "csrc/ops/check.h"
#include "csrc/ops/dtype.h"
#include "csrc/ops/result.h"

namespace kvfuse::ops {
namespace {

std::tuple<at::Tensor, at::Tensor> quantize_kv(const at::Tensor& x) {
  check_quantize_kv(x);
  const auto [codes, scale] = empty_quantized(x);
  const at::Tensor rows = x.contiguous();
  cpu::quantize_kv({.x = rows.const_data_ptr(),
                    .x_dtype = to_dtype(x.scalar_type()).value(),
                    .codes = codes.mutable_data_ptr<std::int8_t>(),
                    .scale = scale.mutable_data_ptr<float>(),
                    .rows = scale.numel(),
                    .width = x.size(-1)});
  return {codes, scale};
}

at::Tensor dequantize_kv(const at::Tensor& codes, const at::Tensor& scale, at::ScalarType dtype) {
  check_dequantize_kv(codes, scale, dtype);
  at::Tensor out = empty_dequantized(codes, dtype);
  const at::Tensor code_rows = codes.contiguous();
  const at::Tensor scales = scale.contiguous();
  cpu::dequantize_kv({.codes = code_rows.const_data_ptr<std::int8_t>(),
                      .scale = scales.const_data_ptr<float>(),
                      .out = out.mutable_data_ptr(),
                      .out_dtype = to_dtype(dtype).value(),
                      .rows = scale.numel(),
                      .width = codes.size(-1)});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, CPU, m) {
  m.impl("quantize_kv", &quantize_kv);
  m.impl("dequantize_kv", &dequantize_kv);
}

}  // namespace kvfuse::ops
