// x * weight^T + bias, by the library that reads the weights fastest.
#pragma once

#include <ATen/core/Tensor.h>

namespace kvfuse {

enum class Gelu { kExact, kTanh };

// A weight [out, in] of the activations' dtype, or codes with their scales (quantized_weights.h).
struct LinearWeight {
  at::Tensor values;
  at::Tensor scale = {};          // undefined: no codes
  bool fine_activations = false;  // beside int8 codes (kernels/linear.h)
  bool packed = false;            // packed_weights.h
};

// x [..., in], bias [out] or undefined; all of one dtype, but for codes.
at::Tensor linear(const at::Tensor& x, const LinearWeight& weight, const at::Tensor& bias);

// The same, then GELU.
at::Tensor linear_gelu(const at::Tensor& x, const LinearWeight& weight, const at::Tensor& bias, Gelu gelu);

}  // namespace kvfuse
