// What this machine can do at best, measured in the process whose times are set beside it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "csrc/model/config.h"
#include "csrc/roofline/cost.h"

namespace kvfuse::bench {

// Bytes a second that a copy within the memory of `device` reads and writes: what its memory moves at best.
double measure_copy_bandwidth(c10::Device device);

// The sizes of a matrix product: [rows, in] times the transpose of [out, in].
struct Product {
  std::int64_t rows = 0;
  std::int64_t in = 0;
  std::int64_t out = 0;
};

// Read bandwidth (of the CPU; of another device, its copy bandwidth), and operations a second of the fastest
// of a large square matrix product and `products`, in `dtype`. Takes about half a second without `products`.
roofline::MachineLimits measure_limits(at::ScalarType dtype, c10::Device device,
                                       std::span<const Product> products = {});

// Operations a second of a matrix product in `dtype` beside weights that the CPU keeps as codes.
double measure_code_products(at::ScalarType dtype, WeightDtype weights);

// The better of two measurements: on a shared machine the slower one met company.
roofline::MachineLimits better_of(const roofline::MachineLimits& a, const roofline::MachineLimits& b);

}  // namespace kvfuse::bench
