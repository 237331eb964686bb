// vram_vs_T: the memory that generating T tokens takes, by exact count of tensor bytes.
#include "benchmark/device.h"
#include "benchmark/interrupt.h"
#include "benchmark/suites/suites.h"
#include "csrc/model/generate.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

constexpr const char* kName = "vram_vs_T";

// Counts do not vary from run to run, so one run is measured.
json measure(Session& session, const Strategy& strategy, std::int64_t T) {
  const BenchConfig& config = session.config();
  const Gpt2& model = session.model(strategy);  // before anything is counted
  const std::int64_t baseline = memory_figures(session.device()).current_bytes;
  reset_peak_memory(session.device());
  std::optional<KvCache> cache =
      session.make_cache(strategy, config.batch_size, config.prompt_length + T - 1);
  Sampler sampler(session.sampler_options());
  std::int64_t generated = 0;
  const OverflowPolicy overflow = session.overflow(T);
  const auto on_token = [&](const at::Tensor&) {
    session.progress(static_cast<double>(++generated), static_cast<double>(T),
                     "vram " + std::string(strategy.name) + " T=" + std::to_string(T));
    return interrupted_signal() == 0;
  };
  generate(model, cache ? &*cache : nullptr, session.inputs().prompt, T, sampler,
           {.on_token = on_token, .overflow = overflow});
  const std::int64_t peak = memory_figures(session.device()).peak_bytes;
  return {{"T", T},
          {"overflow", overflow_json(overflow)},
          {"peak_memory_bytes", peak},
          {"baseline_memory_bytes", baseline},
          {"peak_activation_bytes", peak - baseline},
          {"kv_cache_bytes", cache ? cache->byte_size() : 0}};
}

}  // namespace

Table run_vram(Session& session) {
  const BenchConfig& config = session.config();
  for (const std::int64_t T : config.T_values)
    for (const std::string& version : config.versions) {
      const json case_key = session.make_case(kName, version, T);
      if (session.done(case_key) || interrupted_signal() != 0) continue;
      json measured = {{"T", T}};
      const Outcome outcome = session.attempt([&] { measured = measure(session, find_version(version), T); });
      session.finish_progress();
      session.record(kName, case_key, outcome, measured,
                     "peak " + number_text(measured, "peak_memory_bytes", 1, 1e6) + " MB, cache " +
                         number_text(measured, "kv_cache_bytes", 1, 1e6) + " MB");
    }

  const Results results(session, kName);
  const std::string cached(cached_baseline().name);
  Table table{.headers = {"T", "version", "peak MB", "weights MB", "activations MB", "cache MB",
                          "cache vs " + cached},
              .rows = {}};
  for (const std::int64_t T : config.T_values)
    for (const std::string& version : config.versions) {
      const json* record = results.find(session.make_case(kName, version, T));
      const json none = json::object();
      const json& row = record == nullptr ? none : *record;
      const json* reference = results.find(session.make_case(kName, cached, T));
      const double bytes = row.value("kv_cache_bytes", 0.0);
      table.rows.push_back({std::to_string(T), version, number_text(row, "peak_memory_bytes", 1, 1e6),
                            number_text(row, "baseline_memory_bytes", 1, 1e6),
                            number_text(row, "peak_activation_bytes", 1, 1e6),
                            number_text(row, "kv_cache_bytes", 2, 1e6),
                            reference == nullptr || bytes == 0
                                ? "-"
                                : "1 / " + fixed((*reference)["kv_cache_bytes"].get<double>() / bytes, 2)});
    }
  return table;
}

}  // namespace kvfuse::bench
