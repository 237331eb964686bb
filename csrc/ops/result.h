// What the operators return, allocated alike by every implementation.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "csrc/ops/export.h"

namespace kvfuse::ops {

// [batch, heads, q_len, head_dim] like q, laid out as [batch, q_len, heads, head_dim]: transpose(1, 2) of it
// is contiguous, ready for the output projection.
KVFUSE_OPS_API at::Tensor empty_attention_result(const at::Tensor& q);

// Codes like x, and one scale a row.
KVFUSE_OPS_API std::pair<at::Tensor, at::Tensor> empty_quantized(const at::Tensor& x);

// Like codes, of `dtype`.
KVFUSE_OPS_API at::Tensor empty_dequantized(const at::Tensor& codes, at::ScalarType dtype);

}  // namespace kvfuse::ops
