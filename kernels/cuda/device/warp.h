// Collectives of a warp. Every one is called by all 32 lanes; T is float, int or unsigned.
#pragma once

#include "kernels/cuda/device/platform.h"

#ifndef __CUDACC__
#include <cmath>
#endif

namespace kvfuse::cuda {

#ifdef __CUDACC__

inline constexpr unsigned kAllLanes = 0xffffffffU;

KVFUSE_DEVICE void warp_sync(CallSite = CallSite::current()) { __syncwarp(kAllLanes); }

template <class T>
KVFUSE_DEVICE T shuffle(T value, int source_lane, CallSite = CallSite::current()) {
  return __shfl_sync(kAllLanes, value, source_lane);
}

template <class T>
KVFUSE_DEVICE T shuffle_xor(T value, int lane_mask, CallSite = CallSite::current()) {
  return __shfl_xor_sync(kAllLanes, value, lane_mask);
}

template <class T>
KVFUSE_DEVICE T shuffle_up(T value, int distance, CallSite = CallSite::current()) {
  return __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(distance));
}

template <class T>
KVFUSE_DEVICE T shuffle_down(T value, int distance, CallSite = CallSite::current()) {
  return __shfl_down_sync(kAllLanes, value, static_cast<unsigned>(distance));
}

KVFUSE_DEVICE unsigned ballot(bool value, CallSite = CallSite::current()) {
  return __ballot_sync(kAllLanes, value);
}

KVFUSE_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
KVFUSE_DEVICE int maximum(int a, int b) { return max(a, b); }

#else

KVFUSE_DEVICE void warp_sync(CallSite site = CallSite::current()) {
  emulation::meet_warp("warp_sync", site, nullptr, [](void* const*) {});
}

// The twin of all shuffles: every lane names the lane whose value it takes.
template <class T>
T exchange(const char* name, T value, int source_lane, CallSite site) {
  struct Operands {
    T value, result;
    int source_lane;
  } operands{value, value, source_lane};
  emulation::meet_warp(name, site, &operands, [](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      Operands& own = *static_cast<Operands*>(lanes[lane]);
      own.result = static_cast<Operands*>(lanes[own.source_lane])->value;
    }
  });
  return operands.result;
}

template <class T>
T shuffle(T value, int source_lane, CallSite site = CallSite::current()) {
  return exchange("shuffle", value, source_lane & 31, site);
}

template <class T>
T shuffle_xor(T value, int lane_mask, CallSite site = CallSite::current()) {
  return exchange("shuffle_xor", value, (emulation::lane() ^ lane_mask) & 31, site);
}

// A lane whose source lies outside the warp keeps its own value.
template <class T>
T shuffle_up(T value, int distance, CallSite site = CallSite::current()) {
  const int lane = emulation::lane();
  return exchange("shuffle_up", value, lane < distance ? lane : lane - distance, site);
}

template <class T>
T shuffle_down(T value, int distance, CallSite site = CallSite::current()) {
  const int lane = emulation::lane();
  return exchange("shuffle_down", value, lane + distance > 31 ? lane : lane + distance, site);
}

KVFUSE_DEVICE unsigned ballot(bool value, CallSite site = CallSite::current()) {
  struct Operands {
    bool value;
    unsigned result;
  } operands{value, 0};
  emulation::meet_warp("ballot", site, &operands, [](void* const* lanes) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane)
      votes |= unsigned{static_cast<Operands*>(lanes[lane])->value} << lane;
    for (int lane = 0; lane < 32; ++lane) static_cast<Operands*>(lanes[lane])->result = votes;
  });
  return operands.result;
}

// As fmaxf and max: of a NaN and a number, the number.
KVFUSE_DEVICE float maximum(float a, float b) { return std::fmax(a, b); }
KVFUSE_DEVICE int maximum(int a, int b) { return a > b ? a : b; }

#endif

// Butterflies over aligned groups of kWidth lanes (a power of two): every lane of a group gets the same bits,
// because each step adds the same two partial sums on both sides.
template <int kWidth, class T>
KVFUSE_DEVICE T group_sum(T value, CallSite site = CallSite::current()) {
  static_assert(kWidth >= 1 && kWidth <= 32 && (kWidth & (kWidth - 1)) == 0);
  KVFUSE_UNROLL
  for (int mask = kWidth / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask, site);
  return value;
}

template <int kWidth, class T>
KVFUSE_DEVICE T group_max(T value, CallSite site = CallSite::current()) {
  static_assert(kWidth >= 1 && kWidth <= 32 && (kWidth & (kWidth - 1)) == 0);
  KVFUSE_UNROLL
  for (int mask = kWidth / 2; mask > 0; mask /= 2) value = maximum(value, shuffle_xor(value, mask, site));
  return value;
}

KVFUSE_DEVICE float warp_sum(float value, CallSite site = CallSite::current()) {
  return group_sum<32>(value, site);
}

KVFUSE_DEVICE float warp_max(float value, CallSite site = CallSite::current()) {
  return group_max<32>(value, site);
}

}  // namespace kvfuse::cuda
