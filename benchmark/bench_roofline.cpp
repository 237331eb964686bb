// The time that sweeps of the roofline toolkit take; items are points.
#include <benchmark/benchmark.h>

#include "csrc/roofline/strategies.h"
#include "csrc/roofline/sweep.h"

namespace kvfuse::roofline {
namespace {

// 8 machines x 7 models x 6 strategies x 5 batches x 6 contexts = 10,080 passes of 17 operators each.
void models(benchmark::State& state) {
  const ModelSweep sweep{.machines = HardwareRegistry::builtin().all(),
                         .models = llama_presets(),
                         .strategies = mixed_precision_names(),
                         .batches = {1, 2, 4, 8, 16},
                         .contexts = {128, 512, 1024, 4096, 16384, 32768},
                         .prefill = state.range(0) != 0,
                         .options = {}};
  std::size_t points = 0;
  for (auto unused : state) {
    const std::vector<ModelPoint> found = sweep_models(sweep);
    points += found.size();
    benchmark::DoNotOptimize(found.data());
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(points));
}
BENCHMARK(models)->ArgName("prefill")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

// 8 machines x 180 shapes x 7 formats = 10,080 products.
void products(benchmark::State& state) {
  std::vector<GemmShape> shapes;
  for (std::int64_t M = 1; M <= 180; ++M) shapes.push_back({M, 4096, 4096});
  const std::vector<Precision> formats(kAllPrecisions.begin(), kAllPrecisions.end());
  const std::vector<Hardware>& machines = HardwareRegistry::builtin().all();
  std::size_t points = 0;
  for (auto unused : state) {
    const std::vector<GemmPoint> found = sweep_gemm(machines, shapes, formats);
    points += found.size();
    benchmark::DoNotOptimize(found.data());
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(points));
}
BENCHMARK(products)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace kvfuse::roofline

BENCHMARK_MAIN();
