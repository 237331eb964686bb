// Decode attention of one layer (12 heads of 64, one query a sequence) against PyTorch's own, in one process.
//
// Names: <what>/B<batch>/L<cached tokens>/<cold|hot>. Cold goes round copies of the cache that together
// exceed the last-level cache, as a decode step meets it; hot repeats one. Each iteration also reads plain
// memory, so that `share` compares rates of the same moment: GB_s over read_GB_s, medians over the
// iterations. GB_s counts codes and scales read.
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>
#include <benchmark/benchmark.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "benchmark/memory.h"
#include "benchmark/statistics.h"
#include "benchmark/timer.h"
#include "csrc/ops/build_info.h"
#include "csrc/ops/ops.h"
#include "kernels/bandwidth.h"

namespace kvfuse::bench {
namespace {

constexpr std::int64_t kHeads = 12;
constexpr std::int64_t kHeadDim = 64;
constexpr std::int64_t kColdBytes = 256 << 20;

// One layer's cache, full to `length`.
struct Layer {
  at::Tensor k, v;
  std::optional<at::Tensor> k_scale, v_scale;

  std::int64_t bytes() const {
    std::size_t total = k.nbytes() + v.nbytes();
    if (k_scale) total += k_scale->nbytes() + v_scale->nbytes();
    return static_cast<std::int64_t>(total);
  }
};

Layer make_layer(std::int64_t batch, std::int64_t length, at::ScalarType dtype) {
  const auto random = [&] { return at::randn({batch, kHeads, length, kHeadDim}); };
  if (dtype != at::kChar) return {random().to(dtype), random().to(dtype), {}, {}};
  auto [k, k_scale] = ops::quantize_kv(random());
  auto [v, v_scale] = ops::quantize_kv(random());
  return {k, v, k_scale, v_scale};
}

// As in a model's cache: one behind the other, K beside V.
std::vector<Layer> copies_of(const Layer& layer, std::int64_t count) {
  const auto copies = [&](const at::Tensor& k, const at::Tensor& v) {
    return at::stack(std::vector<at::Tensor>(static_cast<std::size_t>(count), at::stack({k, v})));
  };
  const at::Tensor rows = copies(layer.k, layer.v);
  at::Tensor scales;
  if (layer.k_scale) scales = copies(*layer.k_scale, *layer.v_scale);
  std::vector<Layer> layers;
  for (std::int64_t i = 0; i < count; ++i) {
    Layer copy{rows[i][0], rows[i][1], {}, {}};
    if (layer.k_scale) copy = {rows[i][0], rows[i][1], scales[i][0], scales[i][1]};
    layers.push_back(std::move(copy));
  }
  return layers;
}

struct Inputs {
  at::Tensor q, k, v;               // one token a sequence
  at::Tensor scratch_k, scratch_v;  // for the way that dequantises first
  at::Tensor full, all_but_one;     // cache lengths
};

using Attend = std::function<at::Tensor(const Layer&, const Inputs&)>;

struct Way {
  const char* name;
  at::ScalarType cache_dtype;
  Attend attend;
};

at::Tensor ours(const Layer& l, const Inputs& in) {
  return ops::decode_attention(in.q, l.k, l.v, in.full, l.k_scale, l.v_scale);
}
at::Tensor ours_appending(const Layer& l, const Inputs& in) {
  return ops::append_decode_attention(in.q, in.k, in.v, l.k, l.v, in.all_but_one, l.k_scale, l.v_scale);
}
at::Tensor torch_sdpa(const Layer& l, const Inputs& in) {
  return at::scaled_dot_product_attention(in.q, l.k, l.v);
}
// The unfused way: dequantise the whole cache into reused buffers, then attend.
at::Tensor torch_dequantise(const Layer& l, const Inputs& in) {
  in.scratch_k.copy_(l.k).mul_(l.k_scale->unsqueeze(3));
  in.scratch_v.copy_(l.v).mul_(l.v_scale->unsqueeze(3));
  return at::scaled_dot_product_attention(in.q, in.scratch_k, in.scratch_v);
}

const std::vector<Way> kWays = {{"int8", at::kChar, ours},
                                {"int8_append", at::kChar, ours_appending},
                                {"float16", at::kHalf,
                                 [](const Layer& l, const Inputs& in) {
                                   Inputs half = in;
                                   half.q = in.q.to(at::kHalf);
                                   return ours(l, half);
                                 }},
                                {"float32", at::kFloat, ours},
                                {"torch_float32", at::kFloat, torch_sdpa},
                                {"torch_dequantise", at::kChar, torch_dequantise}};

void run(benchmark::State& state, const Way& way, std::int64_t batch, std::int64_t length, bool cold) {
  const c10::InferenceMode inference;
  const Layer one = make_layer(batch, length, way.cache_dtype);
  const std::int64_t bytes = one.bytes();
  const std::int64_t calls = std::max<std::int64_t>(1, kColdBytes / bytes);
  const std::vector<Layer> layers = copies_of(one, cold ? calls : 1);
  const auto lengths = [&](std::int64_t n) {
    return at::full({batch}, n, at::TensorOptions().dtype(at::kInt));
  };
  const auto token = [&] { return at::randn({batch, kHeads, 1, kHeadDim}); };
  const at::Tensor scratch = at::empty_like(layers[0].k, at::TensorOptions().dtype(at::kFloat));
  const Inputs inputs{
      token(), token(), token(), scratch, at::empty_like(scratch), lengths(length), lengths(length - 1)};
  static const at::Tensor memory = at::full({kColdBytes / 4}, 1.0, at::TensorOptions().dtype(at::kFloat));

  std::vector<double> attend_ms, read_ms;
  for (auto _ : state) {
    const Timer attending;
    for (std::int64_t i = 0; i < calls; ++i)
      benchmark::DoNotOptimize(way.attend(layers[static_cast<std::size_t>(i) % layers.size()], inputs));
    attend_ms.push_back(attending.elapsed_ms());
    state.SetIterationTime(attend_ms.back() / 1e3);
    const Timer reading;
    benchmark::DoNotOptimize(cpu::read_memory(memory.const_data_ptr(), kColdBytes));
    read_ms.push_back(reading.elapsed_ms());
  }
  const double attend_rate = static_cast<double>(bytes * calls) / median(attend_ms) / 1e6;
  const double read_rate = static_cast<double>(kColdBytes) / median(read_ms) / 1e6;
  state.counters["us"] = median(attend_ms) * 1e3 / static_cast<double>(calls);
  state.counters["GB_s"] = attend_rate;
  state.counters["read_GB_s"] = read_rate;
  state.counters["share"] = attend_rate / read_rate;
}

void register_all() {
  for (const std::int64_t batch : {1, 8})
    for (const std::int64_t length : {256, 512, 1024, 4096, 16384})
      for (const bool cold : {true, false})
        for (const Way& way : kWays) {
          if (batch == 8 && length == 16384) continue;  // several GB
          const std::string name = std::string(way.name) + "/B" + std::to_string(batch) + "/L" +
                                   std::to_string(length) + (cold ? "/cold" : "/hot");
          benchmark::RegisterBenchmark(name.c_str(), run, way, batch, length, cold)
              ->UseManualTime()
              ->Unit(benchmark::kMillisecond)
              ->Iterations(31);  // of 5 ms and more: on a shared machine a core may be gone for as long
        }
}

}  // namespace
}  // namespace kvfuse::bench

int main(int argc, char** argv) {
  kvfuse::bench::request_huge_pages();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const kvfuse::ops::BuildInfo build = kvfuse::ops::build_info();
  benchmark::AddCustomContext("isa", build.active_isa);
  benchmark::AddCustomContext("threads", std::to_string(at::get_num_threads()));
  benchmark::AddCustomContext("torch", build.torch_version);
  kvfuse::bench::register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
