// The one place where PyTorch's dtypes become those of the kernels.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

#include "kernels/dtype.h"

namespace kvfuse::ops {

// Empty for a dtype that no kernel reads.
constexpr std::optional<DType> to_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kChar:
      return DType::kInt8;
    default:
      return std::nullopt;
  }
}

}  // namespace kvfuse::ops
