// The quantisation operators, written once for every backend. A Backend says what differs:
//   Guard(device)                    makes the device current while it lives
//   quantize(params), dequantize(params)    launch
#pragma once

#include <torch/library.h>

#include <tuple>

#include "csrc/ops/check.h"
#include "csrc/ops/dtype.h"
#include "csrc/ops/result.h"
#include "kernels/kv_quant.h"

namespace kvfuse::ops {

template <typename Backend>
struct QuantOps {
  static std::tuple<at::Tensor, at::Tensor> quantize_kv(const at::Tensor& x) {
    check_quantize_kv(x);
    const typename Backend::Guard guard(x.device());
    const auto [codes, scale] = empty_quantized(x);
    if (x.numel() == 0) {  // perhaps rows without elements: those have the scale of zeros
      scale.zero_();
      return {codes, scale};
    }
    const at::Tensor rows = x.contiguous();
    Backend::quantize({.x = rows.const_data_ptr(),
                       .x_dtype = to_dtype(x.scalar_type()).value(),
                       .codes = codes.template mutable_data_ptr<std::int8_t>(),
                       .scale = scale.template mutable_data_ptr<float>(),
                       .rows = scale.numel(),
                       .width = x.size(-1)});
    return {codes, scale};
  }

  static at::Tensor dequantize_kv(const at::Tensor& codes, const at::Tensor& scale, at::ScalarType dtype) {
    check_dequantize_kv(codes, scale, dtype);
    const typename Backend::Guard guard(codes.device());
    at::Tensor out = empty_dequantized(codes, dtype);
    if (codes.numel() == 0) return out;
    const at::Tensor code_rows = codes.contiguous();
    const at::Tensor scales = scale.contiguous();
    Backend::dequantize({.codes = code_rows.const_data_ptr<std::int8_t>(),
                         .scale = scales.const_data_ptr<float>(),
                         .out = out.mutable_data_ptr(),
                         .out_dtype = to_dtype(dtype).value(),
                         .rows = scale.numel(),
                         .width = codes.size(-1)});
    return out;
  }

  static void register_in(torch::Library& m) {
    m.impl("quantize_kv", &quantize_kv);
    m.impl("dequantize_kv", &dequantize_kv);
  }
};

}  // namespace kvfuse::ops
