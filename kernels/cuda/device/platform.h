// What a kernel source needs before its first line, for the three compilers that read it: nvcc builds the
// kernels, g++ builds the same sources for the emulator (tests/cuda_emulation), and a plain C++ compiler with
// KVFUSE_CUDA_HOST defined reads only the entry points.
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define KVFUSE_DEVICE __device__ __forceinline__
#define KVFUSE_KERNEL __global__
#define KVFUSE_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define KVFUSE_GRID_CONSTANT const __grid_constant__
#define KVFUSE_UNROLL _Pragma("unroll")

namespace kvfuse::cuda {

// Where a device function was called. Only the emulator looks at it; here it is empty and vanishes.
struct CallSite {
  static KVFUSE_DEVICE CallSite current() { return {}; }
};

}  // namespace kvfuse::cuda

#elif defined(KVFUSE_CUDA_HOST)

#include <cuda_runtime_api.h>

#else

#include <cuda_emulation.h>

#define KVFUSE_DEVICE inline
#define KVFUSE_KERNEL
#define KVFUSE_LAUNCH_BOUNDS(threads, blocks)
#define KVFUSE_GRID_CONSTANT const
#define KVFUSE_UNROLL

namespace kvfuse::cuda {
using CallSite = emulation::CallSite;
}

#endif
