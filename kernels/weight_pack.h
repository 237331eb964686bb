// Weights of linear layers in the order in which products of several rows read them.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/weight_format.h"

namespace kvfuse {

// A matrix in panels: weights of `dtype` (kFloatPanels), int8 codes or 4-bit ones. The scales of the latter
// lie as weights do (weight_format.h).
struct PanelMatrix {
  WeightFormat panels = WeightFormat::kFloatPanels;
  DType dtype = DType::kFloat32;  // of kFloatPanels
  std::int64_t out_size = 0;
  std::int64_t in = 0;  // of kInt8Panels a multiple of kQuadInputs, of kInt4Panels of kInt4Group
};

namespace cpu {

// From rows [out_size, in] to panels, in place.
void pack_weight(void* weight, const PanelMatrix& matrix);

// Row `output` again, to `row`.
void unpack_row(const void* weight, const PanelMatrix& matrix, std::int64_t output, void* row);

}  // namespace cpu
}  // namespace kvfuse
