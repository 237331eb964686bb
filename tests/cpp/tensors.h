// Plain tensors of any element type for the tests of the decode step.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/half.h"
#include "kernels/reference/reference.h"

namespace kvfuse::test {

inline constexpr std::uint64_t kSeeds[] = {1, 2, 3};  // schedules that every launch is tried with

// The relative error of rounding to `dtype`.
inline double rounding_of(DType dtype) {
  if (dtype == DType::kFloat32) return 0x1p-24;
  return dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

struct Tensor {
  DType dtype = DType::kFloat32;
  std::vector<char> bytes;

  static Tensor normal(DType dtype, std::int64_t count, float mean, float deviation, std::mt19937& random) {
    Tensor tensor{dtype, std::vector<char>(static_cast<std::size_t>(count * element_bytes(dtype)))};
    std::normal_distribution<float> distribution;
    for (std::int64_t i = 0; i < count; ++i) tensor.set(i, mean + deviation * distribution(random));
    return tensor;
  }

  const void* data() const { return bytes.data(); }
  void* data() { return bytes.data(); }
  std::int64_t size() const { return static_cast<std::int64_t>(bytes.size()) / element_bytes(dtype); }
  double operator[](std::int64_t i) const { return reference::element(bytes.data(), dtype, i); }

  void set(std::int64_t i, float value) {
    if (dtype == DType::kFloat32) reinterpret_cast<float*>(bytes.data())[i] = value;
    if (dtype == DType::kFloat16) reinterpret_cast<Float16*>(bytes.data())[i] = from_float<Float16>(value);
    if (dtype == DType::kBFloat16) reinterpret_cast<BFloat16*>(bytes.data())[i] = from_float<BFloat16>(value);
  }
};

}  // namespace kvfuse::test
