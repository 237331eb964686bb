// The rows that a fused linear layer multiplies, in shared memory: copied, or normalised on the way.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/memory.h"
#include "kernels/cuda/device/warp.h"
#include "kernels/cuda/vectors.h"
#include "kernels/linear.h"

namespace kvfuse::cuda {

inline constexpr int kLinearThreads = 256;
inline constexpr int kLinearWarps = kLinearThreads / 32;
inline constexpr int kRowLoads = 4;  // 16-byte loads of x that a thread has in flight

// Ahead of the staged rows: what the warps tell each other about a row.
struct LinearShared {
  float sums[kLinearWarps];
  float squares[kLinearWarps];
};

// The rows of x in shared memory, [kRows][kPlanes][vectors] of 16 bytes: the x that belongs to one 16-byte
// vector of weights is one element of each plane, so that neighbouring lanes read neighbouring 16 bytes. Rows
// are kept as they come (T), or as float32 if the block normalises them itself.
template <typename T, bool kNormalize>
struct StagedRows {
  static constexpr int kElements = kVectorElements<T>;
  static constexpr int kPlanes = kNormalize ? kElements / 4 : 1;

  uint4* first;
  int vectors;  // of weights in a row

  KVFUSE_DEVICE uint4& at(int row, int plane, int vector) const {
    return first[(row * kPlanes + plane) * vectors + vector];
  }

  KVFUSE_DEVICE void read(int row, int vector, float (&x)[kElements]) const {
    if constexpr (kNormalize) {
      KVFUSE_UNROLL
      for (int plane = 0; plane < kPlanes; ++plane) {
        float part[4];
        unpack<float>(at(row, plane, vector), part);
        KVFUSE_UNROLL
        for (int i = 0; i < 4; ++i) x[plane * 4 + i] = part[i];
      }
    } else {
      unpack<T>(at(row, 0, vector), x);
    }
  }
};

template <typename T, int kRows>
KVFUSE_DEVICE void copy_rows(const LinearParams& p, std::int64_t first_row, int rows,
                             const StagedRows<T, false>& staged) {
  const T* x = static_cast<const T*>(p.x) + first_row * p.in;  // rows are contiguous, here and there
  for (int i = static_cast<int>(threadIdx.x); i < kRows * staged.vectors; i += kLinearThreads) {
    const bool valid = i < rows * staged.vectors;
    copy16_async_or_zero(&staged.first[i], valid ? x + i * kVectorElements<T> : x, valid);
  }
  copy_async_commit();
  copy_async_wait<0>();
  block_sync();
}

template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T x[4];
};

// The norm parameters in shared memory, behind the staged rows: [2][in].
template <typename T>
struct NormParameters {
  uint4* first;
  int vectors;

  // May run before the wait: nobody writes them.
  KVFUSE_DEVICE void fetch(const LinearParams& p) const {
    const int stored = p.norm_bias != nullptr ? 2 * vectors : vectors;
    for (int i = static_cast<int>(threadIdx.x); i < stored; i += kLinearThreads) {
      const bool is_bias = i >= vectors;
      const T* source = static_cast<const T*>(is_bias ? p.norm_bias : p.norm_weight);
      copy16_async(&first[i], source + (is_bias ? i - vectors : i) * kVectorElements<T>);
    }
    copy_async_commit();
  }

  KVFUSE_DEVICE Quad<T> weight(int quad) const { return reinterpret_cast<const Quad<T>*>(first)[quad]; }
  KVFUSE_DEVICE Quad<T> bias(int quad) const {
    return reinterpret_cast<const Quad<T>*>(first + vectors)[quad];
  }
};

// The sum of a row's values, kRowWarps warps to a row; `parts` is used once a launch.
template <int kRowWarps>
KVFUSE_DEVICE float row_sum(float (&parts)[kLinearWarps], float value) {
  value = warp_sum(value);
  if (lane_id() == 0) parts[warp_id()] = value;
  block_sync();
  float sum = 0.0F;
  KVFUSE_UNROLL
  for (int i = 0; i < kRowWarps; ++i) sum += parts[warp_id() / kRowWarps * kRowWarps + i];
  return sum;
}

// Layernorm of the rows, in place in shared memory. A thread comes back to the same elements in each pass.
// The variance is taken about the mean in a pass of its own: a large mean must not cancel it.
template <typename T, int kRows>
KVFUSE_DEVICE void normalize_rows(const LinearParams& p, std::int64_t first_row, int rows,
                                  LinearShared& shared, const StagedRows<T, true>& staged,
                                  const NormParameters<T>& norm) {
  constexpr int kRowWarps = kLinearWarps / kRows;
  constexpr int kStride = 32 * kRowWarps;
  constexpr int kPlanes = StagedRows<T, true>::kPlanes;
  const int row = warp_id() / kRowWarps;
  const int first = (warp_id() % kRowWarps) * 32 + lane_id();
  const int quads = static_cast<int>(p.in) / 4;
  const float* x = static_cast<const float*>(p.x) + (first_row + row) * p.in;
  const auto at = [&](int i) -> uint4& { return staged.at(row, i % kPlanes, i / kPlanes); };

  float sum = 0.0F;
  for (int i = first; i < quads; i += kRowLoads * kStride) {
    uint4 loaded[kRowLoads];
    KVFUSE_UNROLL
    for (int j = 0; j < kRowLoads; ++j) {
      const int quad = i + j * kStride;
      loaded[j] = row < rows && quad < quads ? load16(x + quad * 4) : make_uint4(0, 0, 0, 0);
    }
    KVFUSE_UNROLL
    for (int j = 0; j < kRowLoads; ++j) {
      if (i + j * kStride < quads) at(i + j * kStride) = loaded[j];
      float v[4];
      unpack<float>(loaded[j], v);
      sum += (v[0] + v[1]) + (v[2] + v[3]);
    }
  }
  const float mean = row_sum<kRowWarps>(shared.sums, sum) / static_cast<float>(p.in);

  float squares = 0.0F;
  for (int i = first; i < quads; i += kStride) {
    float v[4];
    unpack<float>(at(i), v);
    KVFUSE_UNROLL
    for (int j = 0; j < 4; ++j) squares += (v[j] - mean) * (v[j] - mean);
  }
  copy_async_wait<0>();  // the norm parameters: shown to the others by the block_sync in row_sum
  const float variance = row_sum<kRowWarps>(shared.squares, squares) / static_cast<float>(p.in);
  const float inverse = 1.0F / std::sqrt(variance + p.norm_epsilon);

  for (int i = first; i < quads; i += kStride) {
    float v[4];
    unpack<float>(at(i), v);
    const Quad<T> weight = norm.weight(i);
    const Quad<T> bias = p.norm_bias != nullptr ? norm.bias(i) : Quad<T>{};
    KVFUSE_UNROLL
    for (int j = 0; j < 4; ++j) v[j] = (v[j] - mean) * inverse * to_f32(weight.x[j]) + to_f32(bias.x[j]);
    at(i) = pack_floats(v[0], v[1], v[2], v[3]);
  }
  block_sync();
}

}  // namespace kvfuse::cuda
