// Fused linear layers of a decode step on CUDA.
#pragma once

#include "kernels/cuda/device/platform.h"
#include "kernels/linear.h"

namespace kvfuse::cuda {

// cudaErrorInvalidValue for what LinearParams rules out, and for rows too long for shared memory (more than
// about 24000 floats). With overlap_previous the weights are fetched while the previous kernel still runs.
cudaError_t fused_linear(const LinearParams& params, bool overlap_previous, cudaStream_t stream);

}  // namespace kvfuse::cuda
