// What a block of prefill attention keeps in shared memory, and how rows of 16-byte chunks travel between
// there and global memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/memory.h"
#include "kernels/cuda/vectors.h"

namespace kvfuse::cuda {

constexpr int kPrefillThreads = 128;               // four warps
constexpr int kWarpQueries = 16;                   // the height of a tensor-core product
constexpr int kPrefillQueries = 4 * kWarpQueries;  // of a block

template <typename T, int kHeadDim>
struct PrefillTile {
  // Two stages of K and V take 70 KiB at head size 128: two blocks fit a multiprocessor of sm_80, one of
  // sm_86.
  static constexpr int kTokens = sizeof(T) == 4 ? 32 : 64;
  static constexpr int kRowChunks = kHeadDim / kVectorElements<T>;
  static constexpr int kRowThreads = kPrefillThreads / kTokens;  // work on a row together: neighbours
  static constexpr int kThreadChunks = kRowChunks / kRowThreads;
  static_assert(kRowChunks % kRowThreads == 0);

  // One chunk more than a row has, an even number: eight consecutive rows lie in different banks.
  struct Row {
    uint4 chunks[kRowChunks + 1];
  };
  struct Stage {
    Row rows[2 * kTokens];  // K, then V; also holds the queries or the results, kPrefillQueries rows
  };
  static_assert(2 * kTokens >= kPrefillQueries);

  struct Scales {
    float score[kTokens];  // K's, times what makes a dot product the exponent of 2 in the softmax
    float v[kTokens];
  };
};

KVFUSE_DEVICE bool on_chunk(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
}

// A chunk that need not be aligned.
template <typename T>
KVFUSE_DEVICE uint4 load_elements(const T* from) {
  std::uint32_t words[4];
  KVFUSE_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>)
      words[i] = std::bit_cast<std::uint32_t>(from[i]);
    else
      words[i] = from[2 * i].bits | std::uint32_t{from[2 * i + 1].bits} << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T>
KVFUSE_DEVICE void store_elements(T* to, const uint4& chunk) {
  const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
  KVFUSE_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      to[i] = std::bit_cast<float>(words[i]);
    } else {
      to[2 * i] = {static_cast<std::uint16_t>(words[i])};
      to[2 * i + 1] = {static_cast<std::uint16_t>(words[i] >> 16)};
    }
  }
}

// Arrives by the next copy_async_wait.
template <typename T>
KVFUSE_DEVICE void fetch_chunk(uint4* shared, const T* global) {
  if (on_chunk(global))
    copy16_async(shared, global);
  else
    *shared = load_elements(global);
}

template <typename T>
KVFUSE_DEVICE void store_chunk(T* global, const uint4& chunk) {
  if (on_chunk(global))
    store16(global, chunk);
  else
    store_elements(global, chunk);
}

}  // namespace kvfuse::cuda
