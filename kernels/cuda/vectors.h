// 16-byte vectors of the storage types, the step that the row kernels move in, and the dispatch on those
// types.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device/number.h"
#include "kernels/dtype.h"

namespace kvfuse::cuda {

template <typename T>
constexpr int kVectorElements = 16 / static_cast<int>(sizeof(T));

template <typename T>
KVFUSE_DEVICE void unpack(const uint4& vector, float (&x)[kVectorElements<T>]) {
  const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
  KVFUSE_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      x[i] = std::bit_cast<float>(words[i]);
    } else {
      x[2 * i] = unpack_low<T>(words[i]);
      x[2 * i + 1] = unpack_high<T>(words[i]);
    }
  }
}

KVFUSE_DEVICE uint4 pack_floats(float a, float b, float c, float d) {
  return make_uint4(std::bit_cast<std::uint32_t>(a), std::bit_cast<std::uint32_t>(b),
                    std::bit_cast<std::uint32_t>(c), std::bit_cast<std::uint32_t>(d));
}

// Calls f(T{}) with the storage type of `dtype`; cudaErrorInvalidValue for int8.
template <typename F>
cudaError_t with_storage_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(Float16{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kInt8:
      break;
  }
  return cudaErrorInvalidValue;
}

inline bool is_aligned16(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

}  // namespace kvfuse::cuda
