// Choosing the next token on CUDA.
#pragma once

#include "kernels/cuda/device/platform.h"
#include "kernels/sampling.h"

namespace kvfuse::cuda {

// cudaErrorInvalidValue for what SamplingParams rules out. tokens, steps and cache_seqlens are advanced on
// the device: the host need not look between two steps.
cudaError_t sample(const SamplingParams& params, bool overlap_previous, cudaStream_t stream);

}  // namespace kvfuse::cuda
