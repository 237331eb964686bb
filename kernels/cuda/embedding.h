// Token plus position embedding on CUDA.
#pragma once

#include "kernels/cuda/device/platform.h"
#include "kernels/embedding.h"

namespace kvfuse::cuda {

// cudaErrorInvalidValue for what EmbeddingParams rules out.
cudaError_t embed(const EmbeddingParams& params, bool overlap_previous, cudaStream_t stream);

}  // namespace kvfuse::cuda
