#include "benchmark/limits.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <limits>

#include "benchmark/device.h"
#include "benchmark/memory.h"
#include "benchmark/timer.h"
#include "csrc/model/linear.h"
#include "csrc/model/packed_weights.h"
#include "csrc/ops/ops.h"
#include "csrc/records/read_bandwidth.h"

namespace kvfuse::bench {
namespace {

constexpr int kRepetitions = 4;
constexpr std::int64_t kCpuSide = 768;  // 0.9 GFLOP: a few milliseconds, operands in cache
constexpr double kLongEnoughMs = 1000;  // some CPUs compute a 16-bit product 100 times slower

// The fastest of kRepetitions calls, or fewer if they take long, in seconds.
template <typename F>
double fastest_s(F&& f) {
  double best = std::numeric_limits<double>::infinity();
  const Timer all;
  for (int i = 0; i < kRepetitions && all.elapsed_ms() < kLongEnoughMs; ++i) {
    const Timer timer;
    f();
    best = std::min(best, timer.elapsed_ms() / 1e3);
  }
  return best;
}

double operations_per_s(const at::Tensor& x, const LinearWeight& weight) {
  const double seconds = fastest_s([&] {
    kvfuse::linear(x, weight, {});
    synchronize(x.device());
  });
  return 2.0 * static_cast<double>(x.numel()) * static_cast<double>(weight.values.size(0)) / seconds;
}

// With weights in the order in which models have them.
double measure_product(const Product& product, at::ScalarType dtype, c10::Device device) {
  const at::TensorOptions options = at::TensorOptions().dtype(dtype).device(device);
  return operations_per_s(
      at::ones({product.rows, product.in}, options),
      {.values = at::ones({product.out, product.in}, options), .packed = packs(dtype, device)});
}

}  // namespace

double measure_copy_bandwidth(c10::Device device) {
  constexpr std::int64_t kCopyBytes = 1 << 30;  // 20 times the second-level cache of an H200
  const at::Tensor from = at::ones({kCopyBytes}, at::TensorOptions().dtype(at::kByte).device(device));
  const at::Tensor to = at::empty_like(from);
  const double seconds = fastest_s([&] {
    to.copy_(from);
    synchronize(device);
  });
  return 2.0 * static_cast<double>(kCopyBytes) / seconds;
}

roofline::MachineLimits measure_limits(at::ScalarType dtype, c10::Device device,
                                       std::span<const Product> products) {
  const c10::InferenceMode inference;
  const BudgetLifted lifted;
  const std::int64_t side = device.is_cpu() ? kCpuSide : 4096;  // a GPU needs more to be filled
  double flops_per_s = measure_product({side, side, side}, dtype, device);
  for (const Product& product : products)
    flops_per_s = std::max(flops_per_s, measure_product(product, dtype, device));
  return {.read_bytes_per_s = device.is_cpu() ? measure_read_bandwidth() : measure_copy_bandwidth(device),
          .matmul_flops_per_s = flops_per_s};
}

double measure_code_products(at::ScalarType dtype, WeightDtype weights) {
  const c10::InferenceMode inference;
  const BudgetLifted lifted;
  const at::Tensor x = at::ones({kCpuSide, kCpuSide}, at::TensorOptions().dtype(dtype));
  const auto [codes, scale] = ops::quantize_weight(x, weight_dtype_name(weights));
  return operations_per_s(x, {.values = codes, .scale = scale});
}

roofline::MachineLimits better_of(const roofline::MachineLimits& a, const roofline::MachineLimits& b) {
  return {.read_bytes_per_s = std::max(a.read_bytes_per_s, b.read_bytes_per_s),
          .matmul_flops_per_s = std::max(a.matmul_flops_per_s, b.matmul_flops_per_s)};
}

}  // namespace kvfuse::bench
