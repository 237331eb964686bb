// The products of a GPT-2 decode step, weights read from memory, beside the rate at which memory is
// read.
//
// Names: <format>/<out>x<in>/B<rows>. Each iteration goes round copies of a weight that together exceed the
// last-level cache, and then reads plain memory, so that `share` compares rates of the same moment: GB_s over
// read_GB_s, the best of the iterations each, which another process disturbs least. GB_s counts codes and
// scales.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "benchmark/timer.h"
#include "kernels/bandwidth.h"
#include "kernels/cpu/isa.h"
#include "kernels/linear.h"

namespace kvfuse::bench {
namespace {

constexpr std::int64_t kColdBytes = 192 << 20;
constexpr std::size_t kHugePage = 2 << 20;

struct Free {
  void operator()(void* data) const { std::free(data); }
};
using Memory = std::unique_ptr<char, Free>;

// On 2 MiB pages where the system gives them, and not zero: pages of zeros might be one and the same.
Memory make_memory(std::int64_t bytes) {
  const std::size_t size = (static_cast<std::size_t>(bytes) + kHugePage - 1) / kHugePage * kHugePage;
  Memory memory(static_cast<char*>(std::aligned_alloc(kHugePage, size)));
  if (memory == nullptr) throw std::bad_alloc();
  madvise(memory.get(), size, MADV_HUGEPAGE);
  std::fill_n(memory.get(), size, char{0x11});
  return memory;
}

struct Case {
  const char* name;
  WeightFormat format;
  DType dtype;
};
constexpr Case kCases[] = {{"float32", WeightFormat::kFloat, DType::kFloat32},
                           {"float32_packed", WeightFormat::kFloatPanels, DType::kFloat32},
                           {"bfloat16", WeightFormat::kFloat, DType::kBFloat16},
                           {"int8", WeightFormat::kInt8Rows, DType::kFloat32},
                           {"int8_packed", WeightFormat::kInt8Panels, DType::kFloat32},
                           {"int4", WeightFormat::kInt4Groups, DType::kFloat32},
                           {"int4_packed", WeightFormat::kInt4Panels, DType::kFloat32}};

void run(benchmark::State& state, const Case& c, std::int64_t out_size, std::int64_t in, std::int64_t rows) {
  const std::int64_t code_bytes = out_size * weight_row_bytes(c.format, c.dtype, in);
  const std::int64_t scale_bytes = out_size * scale_row_bytes(c.format, in);
  const std::int64_t copies = std::max<std::int64_t>(1, kColdBytes / (code_bytes + scale_bytes));
  static const Memory plain = make_memory(kColdBytes);
  const Memory codes = make_memory(copies * code_bytes), scales = make_memory(copies * scale_bytes);
  const Memory x = make_memory(rows * in * element_bytes(c.dtype));
  const Memory out = make_memory(rows * out_size * element_bytes(DType::kFloat32));
  LinearParams params{.x = x.get(),
                      .out = out.get(),
                      .dtype = c.dtype,
                      .weight_format = c.format,
                      .rows = rows,
                      .in = in,
                      .out_size = out_size};
  double multiply_ms = 1e9, read_ms = 1e9;
  for (auto _ : state) {
    const Timer multiplying;
    for (std::int64_t i = 0; i < copies; ++i) {
      params.weight = codes.get() + i * code_bytes;
      params.weight_scale = scale_bytes == 0 ? nullptr : scales.get() + i * scale_bytes;
      cpu::linear(params);
    }
    const double elapsed_ms = multiplying.elapsed_ms();
    multiply_ms = std::min(multiply_ms, elapsed_ms);
    state.SetIterationTime(elapsed_ms / 1e3);
    const Timer reading;
    benchmark::DoNotOptimize(cpu::read_memory(plain.get(), kColdBytes));
    read_ms = std::min(read_ms, reading.elapsed_ms());
  }
  const double rate = static_cast<double>((code_bytes + scale_bytes) * copies) / multiply_ms / 1e6;
  const double read_rate = static_cast<double>(kColdBytes) / read_ms / 1e6;
  state.counters["us"] = multiply_ms * 1e3 / static_cast<double>(copies);
  state.counters["GB_s"] = rate;
  state.counters["read_GB_s"] = read_rate;
  state.counters["share"] = rate / read_rate;
}

void register_all() {
  struct Size {
    std::int64_t out, in;
  };
  for (const Case& c : kCases)
    for (const Size size :
         {Size{2304, 768}, Size{768, 768}, Size{3072, 768}, Size{768, 3072}, Size{50257, 768}})
      for (const std::int64_t rows : {1, 4, 16})
        benchmark::RegisterBenchmark((std::string(c.name) + "/" + std::to_string(size.out) + "x" +
                                      std::to_string(size.in) + "/B" + std::to_string(rows))
                                         .c_str(),
                                     run, c, size.out, size.in, rows)
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond)
            ->Iterations(9);
}

}  // namespace
}  // namespace kvfuse::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::AddCustomContext("isa", kvfuse::cpu::isa_name(kvfuse::cpu::active_isa()));
  kvfuse::bench::register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
