// One GPT-2 decode step on CUDA. All pointers of the parameters are device memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/platform.h"
#include "kernels/decode_step.h"

namespace kvfuse::cuda {

// Of the sizes, dtype, caches and splits in `params`. Two steps at a time need a workspace each.
std::int64_t decode_step_workspace_bytes(const DecodeStepParams& params);

// Enqueues embedding, five kernels a layer, head and sampling; nothing waits for the device, and nothing but
// device memory changes from step to step, so the sequence can be captured in a graph. The residual stream is
// float32, the rows between kernels are of `dtype`. Returns the first error; what precedes it stays enqueued.
// A sequence that has outgrown block_size or a cache gets NaN logits.
cudaError_t enqueue_decode_step(const DecodeStepParams& params, cudaStream_t stream);

}  // namespace kvfuse::cuda
