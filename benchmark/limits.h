// What this machine can do at best, measured in the process whose times are set beside it.
#pragma once

#include <ATen/core/Tensor.h>

#include "csrc/roofline/cost.h"

namespace kvfuse::bench {

// Bytes a second of the fastest of several ways to read a buffer far larger than the CPU's last-level cache,
// with all threads.
double measure_read_bandwidth();

// Bytes a second that a copy within the memory of `device` reads and writes: what its memory moves at best.
double measure_copy_bandwidth(c10::Device device);

// Read bandwidth (of the CPU; of another device, its copy bandwidth), and operations a second of a large
// matrix product in `dtype`. Takes about half a second.
roofline::MachineLimits measure_limits(at::ScalarType dtype, c10::Device device);

// The better of two measurements: on a shared machine the slower one met company.
roofline::MachineLimits better_of(const roofline::MachineLimits& a, const roofline::MachineLimits& b);

}  // namespace kvfuse::bench
