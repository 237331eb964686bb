// Between blocks of a grid and between kernels of a stream.
#pragma once

#include "kernels/cuda/device/platform.h"

namespace kvfuse::cuda {

// Counts a block in: adds 1 to *counter and returns what it held; the arrival that makes `expected` sets it
// back to 0, ready for the next launch. Called by one thread of a block, after block_sync: what the block
// wrote is then seen by blocks that arrive later, and what earlier arrivals wrote is seen by this block after
// one more block_sync. The last block is the one that gets expected - 1.
KVFUSE_DEVICE int arrive(int* counter, int expected) {
#ifdef __CUDACC__
  __threadfence();
  const unsigned before =
      atomicInc(reinterpret_cast<unsigned*>(counter), static_cast<unsigned>(expected) - 1U);
  __threadfence();
  return static_cast<int>(before);
#else
  emulation::maybe_switch();
  const int before = *counter;
  *counter = static_cast<unsigned>(before) >= static_cast<unsigned>(expected) - 1U ? 0 : before + 1;
  return before;
#endif
}

// With LaunchShape::overlap_previous: everything the previous kernel of the stream wrote is visible after
// this.
KVFUSE_DEVICE void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel of the stream may start its blocks as soon as all blocks of this one have said so or ended.
KVFUSE_DEVICE void allow_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace kvfuse::cuda
