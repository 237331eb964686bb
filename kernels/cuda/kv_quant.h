// Symmetric int8 quantisation of rows on CUDA: entry points. Parameters are those of kernels/kv_quant.h, all
// pointers device memory; rows need no alignment beyond their elements'.
#pragma once

#include "kernels/cuda/device/platform.h"
#include "kernels/kv_quant.h"

namespace kvfuse::cuda {

cudaError_t quantize_kv(const QuantizeParams& params, cudaStream_t stream);
cudaError_t dequantize_kv(const DequantizeParams& params, cudaStream_t stream);

}  // namespace kvfuse::cuda
