#include "benchmark/limits.h"

#include <ATen/ops/ones.h>
#include <c10/core/InferenceMode.h>

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "benchmark/memory.h"
#include "benchmark/timer.h"
#include "csrc/model/linear.h"
#include "kernels/bandwidth.h"

namespace kvfuse::bench {
namespace {

constexpr std::int64_t kBufferBytes = 256 << 20;  // several times a last-level cache
constexpr std::int64_t kHugePage = 2 << 20;
constexpr int kRepetitions = 4;

// The fastest of kRepetitions calls, in seconds.
template <typename F>
double fastest_s(F&& f) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRepetitions; ++i) {
    const Timer timer;
    f();
    best = std::min(best, timer.elapsed_ms() / 1e3);
  }
  return best;
}

}  // namespace

double measure_read_bandwidth() {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  // Kept for the next measurement: touching fresh pages takes longer than reading them.
  static const std::unique_ptr<void, Free> buffer = [] {
    void* data = std::aligned_alloc(kHugePage, kBufferBytes);
    if (data == nullptr) throw std::bad_alloc();
    madvise(data, kBufferBytes, MADV_HUGEPAGE);  // as the tensors are; a refusal only makes the limit lower
    std::memset(data, 0, kBufferBytes);
    return std::unique_ptr<void, Free>(data);
  }();
  double best = 0;
  for (const int streams : {1, 4, 8})
    best = std::max(best, static_cast<double>(kBufferBytes) /
                              fastest_s([&] { cpu::read_memory(buffer.get(), kBufferBytes, streams); }));
  return best;
}

roofline::MachineLimits measure_limits(at::ScalarType dtype) {
  const c10::InferenceMode inference;
  const BudgetLifted lifted;
  constexpr std::int64_t kSize = 768;  // 0.9 GFLOP: a few milliseconds, operands in cache
  const at::Tensor a = at::ones({kSize, kSize}, at::TensorOptions().dtype(dtype));
  const double seconds = fastest_s([&] { kvfuse::linear(a, a, {}); });
  return {.read_bytes_per_s = measure_read_bandwidth(),
          .matmul_flops_per_s = 2.0 * kSize * kSize * kSize / seconds};
}

roofline::MachineLimits better_of(const roofline::MachineLimits& a, const roofline::MachineLimits& b) {
  return {.read_bytes_per_s = std::max(a.read_bytes_per_s, b.read_bytes_per_s),
          .matmul_flops_per_s = std::max(a.matmul_flops_per_s, b.matmul_flops_per_s)};
}

}  // namespace kvfuse::bench
