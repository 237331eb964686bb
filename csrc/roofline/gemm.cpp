#include "csrc/roofline/gemm.h"

#include <algorithm>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {

void check_gemm(const GemmShape& shape) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  check_range("M", shape.M, 1, kMost);
  check_range("N", shape.N, 1, kMost);
  check_range("K", shape.K, 1, kMost);
}

GemmPrediction predict_gemm(const Hardware& hardware, const GemmShape& shape, Precision weights,
                            const GemmOptions& options) {
  check_gemm(shape);
  const auto M = static_cast<double>(shape.M);
  const auto N = static_cast<double>(shape.N);
  const auto K = static_cast<double>(shape.K);
  const Precision activations = options.activations.value_or(activation_precision(weights));
  const Peak peak = peak_of(hardware, weights);
  const MachineLimits limits = limits_of(hardware, weights);

  const double weight_bytes = matrix_bytes(weights, N, shape.K, options.accounting);
  const Cost cost{.flops = 2 * M * N * K,
                  .bytes = weight_bytes + matrix_bytes(activations, M, shape.K, options.accounting) +
                           matrix_bytes(activations, M, shape.N, options.accounting)};
  GemmPrediction result{.shape = shape,
                        .precision = weights,
                        .computed_in = peak.computed_in,
                        .storage_only = peak.storage_only,
                        .flops = cost.flops,
                        .bytes = cost.bytes,
                        .weight_bytes = weight_bytes,
                        .ai = cost.intensity(),
                        .critical_ai = limits.ridge(),
                        .memory_time_us = 1e6 * cost.bytes / limits.read_bytes_per_s,
                        .compute_time_us = 1e6 * cost.flops / limits.matmul_flops_per_s};
  result.predicted_time_us = std::max(result.memory_time_us, result.compute_time_us);
  result.bottleneck = slower_limit(result.memory_time_us, result.compute_time_us);
  result.predicted_tflops = cost.flops / result.predicted_time_us / 1e6;
  result.predicted_bandwidth_gb_s = cost.bytes / result.predicted_time_us / 1e3;
  return result;
}

GemmPrediction predict_gemv(const Hardware& hardware, std::int64_t N, std::int64_t K, Precision weights,
                            const GemmOptions& options) {
  return predict_gemm(hardware, {.M = 1, .N = N, .K = K}, weights, options);
}

}  // namespace kvfuse::roofline
