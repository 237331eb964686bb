// Packed tensors of weights, and of the scales of int4 codes, as the kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include "csrc/ops/dtype.h"
#include "kernels/weight_pack.h"

namespace kvfuse::ops {

// Of a tensor [out, in], [out, in / 2] of int4 codes, whose dtype says what it holds; one that pack_weight
// takes.
inline PanelMatrix panel_matrix(const at::Tensor& weight) {
  const std::int64_t out_size = weight.size(0), columns = weight.size(1);
  switch (weight.scalar_type()) {
    case at::kByte:
      return {.panels = WeightFormat::kInt4Panels, .out_size = out_size, .in = 2 * columns};
    case at::kChar:
      return {.panels = WeightFormat::kInt8Panels, .out_size = out_size, .in = columns};
    default:
      return {.dtype = to_dtype(weight.scalar_type()).value(), .out_size = out_size, .in = columns};
  }
}

}  // namespace kvfuse::ops
