// Weights of linear layers in the order in which products of several rows read them.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvfuse::cpu {

// A weight [out_size, in] of `dtype`, a floating one, from rows to panels (WeightFormat::kFloatPanels), in
// place.
void pack_weight(void* weight, DType dtype, std::int64_t out_size, std::int64_t in);

}  // namespace kvfuse::cpu
