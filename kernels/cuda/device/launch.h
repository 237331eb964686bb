// Starting a kernel. Host code.
#pragma once

#include <cstddef>

#include "kernels/cuda/device/platform.h"

namespace kvfuse::cuda {

struct LaunchShape {
  dim3 grid;
  unsigned threads;  // of a block: a multiple of 32, at most 1024
  std::size_t shared_bytes;
  bool overlap_previous = false;  // may start before the previous kernel ends: see wait_for_previous_kernel
};

// Starts kernel(params) and returns the launch's own error. A grid of size zero is an error: skip the launch.
template <class P>
cudaError_t launch(void (*kernel)(P), const LaunchShape& shape, cudaStream_t stream, const P& params) {
#ifdef __CUDACC__
  // Above this a kernel must opt in; below, the call would be a waste on every launch.
  constexpr std::size_t kDefaultSharedBytes = 48 * 1024;
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > kDefaultSharedBytes)
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared_bytes));
  if (error == cudaSuccess) {
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = shape.grid;
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = shape.overlap_previous ? 1 : 0;
    error = cudaLaunchKernelEx(&config, kernel, params);
  }
  if (error != cudaSuccess) (void)cudaGetLastError();  // reported here: nobody must find it a second time
  return error;
#else
  (void)stream;
  return emulation::run_grid(shape.grid, shape.threads, shape.shared_bytes, [&] { kernel(params); });
#endif
}

}  // namespace kvfuse::cuda
