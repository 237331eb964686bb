// Weights of linear layers in the order in which products of several rows read them.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvfuse::cpu {

// A weight [out_size, in] of `dtype` from rows to panels (WeightFormat::kFloatPanels, of int8 codes
// kInt8Panels), in place. Of int8 codes `in` is a multiple of kQuadInputs.
void pack_weight(void* weight, DType dtype, std::int64_t out_size, std::int64_t in);

// Row `output` of a packed weight, to `row` [in].
void unpack_row(const void* weight, DType dtype, std::int64_t out_size, std::int64_t in, std::int64_t output,
                void* row);

}  // namespace kvfuse::cpu
