// What the CUDA implementations share: launches are checked.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

namespace kvfuse::ops {

// `status` is what starting the kernel of `op` returned.
inline void check_launch(const char* op, cudaError_t status) {
  TORCH_CHECK(status == cudaSuccess, op, ": expected its CUDA kernel to start, got ",
              cudaGetErrorName(status), " (", cudaGetErrorString(status), ")");
}

}  // namespace kvfuse::ops
