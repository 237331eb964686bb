// The block: its barrier, its shared memory, and where a thread stands in it. Blocks are one-dimensional.
#pragma once

#include <type_traits>

#include "kernels/cuda/device/platform.h"

namespace kvfuse::cuda {

KVFUSE_DEVICE int lane_id() { return static_cast<int>(threadIdx.x % 32); }

KVFUSE_DEVICE int warp_id() { return static_cast<int>(threadIdx.x / 32); }

// The block's dynamic shared memory seen as an S, uninitialised. The launch must ask for sizeof(S) bytes.
template <class S>
KVFUSE_DEVICE S& block_shared(CallSite site = CallSite::current()) {
  static_assert(std::is_trivially_default_constructible_v<S> && alignof(S) <= 16,
                "shared memory starts uninitialised and 16-byte aligned");
#ifdef __CUDACC__
  (void)site;
  extern __shared__ uint4 kvfuse_block_shared[];
  return *reinterpret_cast<S*>(kvfuse_block_shared);
#else
  return *static_cast<S*>(emulation::shared_memory(sizeof(S), site));
#endif
}

// All threads of the block meet; what each wrote before is seen by all after.
KVFUSE_DEVICE void block_sync(CallSite site = CallSite::current()) {
#ifdef __CUDACC__
  (void)site;
  __syncthreads();
#else
  emulation::meet_block("block_sync", site, false);
#endif
}

// block_sync that also tells whether any thread passed true.
KVFUSE_DEVICE bool block_sync_or(bool value, CallSite site = CallSite::current()) {
#ifdef __CUDACC__
  (void)site;
  return __syncthreads_or(value) != 0;
#else
  return emulation::meet_block("block_sync_or", site, value);
#endif
}

}  // namespace kvfuse::cuda
