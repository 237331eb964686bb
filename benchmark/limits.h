// What this machine can do at best, measured in the process whose times are set beside it.
#pragma once

#include <ATen/core/Tensor.h>

#include "csrc/roofline/cost.h"

namespace kvfuse::bench {

// Bytes a second of the fastest of several ways to read a buffer far larger than the last-level cache, with
// all threads.
double measure_read_bandwidth();

// Read bandwidth, and operations a second of a large matrix product in `dtype`. Takes about half a second.
roofline::MachineLimits measure_limits(at::ScalarType dtype);

// The better of two measurements: on a shared machine the slower one met company.
roofline::MachineLimits better_of(const roofline::MachineLimits& a, const roofline::MachineLimits& b);

}  // namespace kvfuse::bench
