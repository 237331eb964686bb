// x * weight^T + bias, by the library that reads the weights fastest.
#pragma once

#include <ATen/core/Tensor.h>

namespace kvfuse {

enum class Gelu { kExact, kTanh };

// x [..., in], weight [out, in], bias [out] or undefined; all of one dtype.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// The same, then GELU.
at::Tensor linear_gelu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, Gelu gelu);

}  // namespace kvfuse
