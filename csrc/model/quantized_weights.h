// Weights as codes: what a decode step reads a quarter of.
#pragma once

#include <ATen/core/Tensor.h>

#include "csrc/model/config.h"
#include "csrc/model/weights.h"

namespace kvfuse {

// `weights` with linears and token embedding as codes and scales; all else stays. kInt8: int8 codes [out, in]
// and a float32 scale for each output. kInt4: codes of 4 bits for the linears of the layers, two a byte
// [out, in / 2], and a float16 scale for each 32 inputs (kernels/weight_format.h); the token embedding, which
// is the output head too, is as for kInt8. Throws std::invalid_argument if the weights are not on the CPU,
// the only backend with such products, are quantised already, hold values that are NaN or infinite, which
// codes cannot keep, or, for kInt4, if n_embd is no multiple of 32.
Gpt2Weights with_quantized_linears(Gpt2Weights weights, WeightDtype dtype);

}  // namespace kvfuse
