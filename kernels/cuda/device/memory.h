// Memory accesses that the language cannot spell: 16-byte global loads with cache hints, asynchronous copies
// into shared memory, prefetch. All addresses are 16-byte aligned. Shared memory itself is read and written
// as ordinary members of the block_shared struct.
#pragma once

#include "kernels/cuda/device/platform.h"

#ifndef __CUDACC__
#include <cstring>
#endif

namespace kvfuse::cuda {

#ifdef __CUDACC__

// Coherent: sees what this block wrote before its last block_sync. Streams past the L1 cache.
KVFUSE_DEVICE uint4 load16(const void* global, CallSite = CallSite::current()) {
  uint4 value;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(global)
               : "memory");
  return value;
}

// For what nobody writes during the launch. Volatile keeps it behind wait_for_previous_kernel.
KVFUSE_DEVICE uint4 load16_readonly(const void* global, CallSite = CallSite::current()) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(global));
  return value;
}

KVFUSE_DEVICE void store16(void* global, uint4 value, CallSite = CallSite::current()) {
  *static_cast<uint4*>(global) = value;
}

KVFUSE_DEVICE unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// The copied bytes may be read after copy_async_wait by this thread, and after a further sync by others.
KVFUSE_DEVICE void copy16_async(void* shared, const void* global, CallSite = CallSite::current()) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}

// Writes zeros instead, and does not read, when !valid.
KVFUSE_DEVICE void copy16_async_or_zero(void* shared, const void* global, bool valid,
                                        CallSite = CallSite::current()) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Closes a group: all copies of this thread since the last commit.
KVFUSE_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the kPending youngest groups of this thread are still under way.
template <int kPending>
KVFUSE_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

KVFUSE_DEVICE void prefetch_l2(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

#else

KVFUSE_DEVICE uint4 load16(const void* global, CallSite site = CallSite::current()) {
  emulation::access_global("load16", global, site);
  emulation::record_load(global, site);
  uint4 value;
  std::memcpy(&value, global, sizeof(value));
  return value;
}

KVFUSE_DEVICE uint4 load16_readonly(const void* global, CallSite site = CallSite::current()) {
  emulation::access_global("load16_readonly", global, site);
  emulation::record_load(global, site);
  uint4 value;
  std::memcpy(&value, global, sizeof(value));
  return value;
}

KVFUSE_DEVICE void store16(void* global, uint4 value, CallSite site = CallSite::current()) {
  emulation::access_global("store16", global, site);
  std::memcpy(global, &value, sizeof(value));
}

// The bytes are read here, so that a bad address shows here, but land only at the wait. Until then the
// destination holds poison.
KVFUSE_DEVICE void copy16_async_or_zero(void* shared, const void* global, bool valid,
                                        CallSite site = CallSite::current()) {
  emulation::access_shared("copy16_async", shared, site);
  uint4 value{};
  if (valid) {
    emulation::access_global("copy16_async", global, site);
    emulation::record_load(global, site);
    std::memcpy(&value, global, sizeof(value));
  }
  std::memset(shared, emulation::kPoison, sizeof(value));
  emulation::queue_copy(shared, value);
}

KVFUSE_DEVICE void copy16_async(void* shared, const void* global, CallSite site = CallSite::current()) {
  copy16_async_or_zero(shared, global, true, site);
}

KVFUSE_DEVICE void copy_async_commit() { emulation::commit_copies(); }

template <int kPending>
void copy_async_wait() {
  emulation::wait_copies(kPending);
}

KVFUSE_DEVICE void prefetch_l2(const void*) {}

#endif

}  // namespace kvfuse::cuda
