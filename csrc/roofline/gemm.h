// One matrix product on the roofline: [M, K] times the transpose of [N, K], M = 1 being a matrix-vector
// product.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "csrc/roofline/hardware.h"
#include "csrc/roofline/precision.h"

namespace kvfuse::roofline {

enum class Bound { kMemory, kCompute };
constexpr const char* bound_name(Bound bound) { return bound == Bound::kMemory ? "memory" : "compute"; }

// Of equal times it is the arithmetic.
constexpr Bound slower_limit(double memory_time, double compute_time) {
  return memory_time > compute_time ? Bound::kMemory : Bound::kCompute;
}

struct GemmShape {
  std::int64_t M = 1;  // rows of activations
  std::int64_t N = 0;  // outputs
  std::int64_t K = 0;  // inputs
};
// 1 <= each <= 2^31.
void check_gemm(const GemmShape& shape);

struct GemmOptions {
  std::optional<Precision> activations;  // nothing: activation_precision(weights)
  Accounting accounting = Accounting::kComplete;
};

struct GemmPrediction {
  GemmShape shape;
  Precision precision = Precision::kFp16;  // of the weights
  Precision computed_in = Precision::kFp16;
  bool storage_only = false;  // see Peak
  double flops = 0;
  double bytes = 0;  // weights with their scales, activations in and out
  double weight_bytes = 0;
  double ai = 0;           // FLOPs a byte
  double critical_ai = 0;  // from there on the arithmetic is the slower one
  double memory_time_us = 0;
  double compute_time_us = 0;
  double predicted_time_us = 0;  // the larger of the two
  Bound bottleneck = Bound::kMemory;
  double predicted_tflops = 0;
  double predicted_bandwidth_gb_s = 0;
};

// Throws std::invalid_argument on a size out of range and on a format that the hardware cannot compute.
GemmPrediction predict_gemm(const Hardware& hardware, const GemmShape& shape, Precision weights,
                            const GemmOptions& options = {});
GemmPrediction predict_gemv(const Hardware& hardware, std::int64_t N, std::int64_t K, Precision weights,
                            const GemmOptions& options = {});

}  // namespace kvfuse::roofline
