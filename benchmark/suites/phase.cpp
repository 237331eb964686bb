// per_phase_breakdown: where the time of generating T_star tokens goes. Each run is timed twice:
// instrumented, with a mark at every boundary between two phases, and plain.
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>
#include <numeric>

#include "benchmark/device.h"
#include "benchmark/interrupt.h"
#include "benchmark/statistics.h"
#include "benchmark/suites/suites.h"
#include "benchmark/timer.h"
#include "csrc/model/generate.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

constexpr const char* kName = "per_phase_breakdown";
constexpr std::array<const char*, kPhases> kPhaseNames = {"embedding", "attention", "mlp", "head", "other"};

// Milliseconds by phase of everything between its making and finish(). The CPU's clock is read at each
// boundary; a device records an event there, so that nothing waits for it before the end.
class PhaseClock {
 public:
  explicit PhaseClock(c10::Device device) : device_(device) { begin(Phase::kOther); }

  void begin(Phase phase) {
    phases_.push_back(phase);
    if (device_.is_cpu()) {
      read_ms_.push_back(timer_.elapsed_ms());
      return;
    }
    events_.emplace_back(device_.type(), c10::EventFlag::BACKEND_DEFAULT);  // the one that keeps the time
    events_.back().record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  }

  std::array<double, kPhases> finish() {
    begin(Phase::kOther);
    synchronize(device_);
    std::array<double, kPhases> spent_ms{};
    for (std::size_t i = 0; i + 1 < phases_.size(); ++i)
      spent_ms[static_cast<std::size_t>(phases_[i])] +=
          device_.is_cpu() ? read_ms_[i + 1] - read_ms_[i] : events_[i].elapsedTime(events_[i + 1]);
    return spent_ms;
  }

 private:
  const c10::Device device_;
  const Timer timer_;
  std::vector<Phase> phases_;       // that begin at each boundary
  std::vector<double> read_ms_;     // on the CPU
  std::vector<c10::Event> events_;  // elsewhere
};

struct Samples {
  std::vector<std::array<double, kPhases>> phases_ms;
  std::vector<double> plain_ms;
};

void generate_once(Session& session, const Strategy& strategy, const OnPhase& on_phase) {
  const BenchConfig& config = session.config();
  Sampler sampler(session.sampler_options());
  std::optional<KvCache> cache =
      session.make_cache(strategy, config.batch_size, config.prompt_length + config.T_star - 1);
  generate(session.model(strategy), cache ? &*cache : nullptr, session.inputs().prompt, config.T_star,
           sampler,
           {.on_token = [](const at::Tensor&) { return interrupted_signal() == 0; }, .on_phase = on_phase});
}

void sample(Session& session, const Strategy& strategy, bool warmup, Samples& samples) {
  const Timer timer;
  generate_once(session, strategy, {});
  synchronize(session.device());
  const double plain_ms = timer.elapsed_ms();
  PhaseClock clock(session.device());
  generate_once(session, strategy, [&](Phase phase) { clock.begin(phase); });
  const std::array<double, kPhases> phases_ms = clock.finish();
  if (warmup || interrupted_signal() != 0) return;
  samples.plain_ms.push_back(plain_ms);
  samples.phases_ms.push_back(phases_ms);
}

// Means, so that the phases add up to the total.
json measured(const BenchConfig& config, const Samples& samples) {
  json fields = {{"T", config.T_star}};
  if (samples.plain_ms.empty()) return fields;
  const double runs = static_cast<double>(samples.plain_ms.size());
  json phases;
  std::vector<double> totals(samples.plain_ms.size(), 0.0);
  for (std::size_t phase = 0; phase < kPhaseNames.size(); ++phase) {
    double sum = 0;
    for (std::size_t run = 0; run < totals.size(); ++run) {
      sum += samples.phases_ms[run][phase];
      totals[run] += samples.phases_ms[run][phase];
    }
    phases[kPhaseNames[phase]] = sum / runs;
  }
  phases["total"] = std::accumulate(totals.begin(), totals.end(), 0.0) / runs;
  fields.update({{"time_phase_ms", phases},
                 {"time_phase_total_ms_samples", totals},
                 {"time_total_ms_samples", samples.plain_ms},
                 {"time_total_ms_median", median(samples.plain_ms)}});
  return fields;
}

void run_version(Session& session, const std::string& version) {
  const BenchConfig& config = session.config();
  const json case_key = session.make_case(kName, version, config.T_star);
  if (session.done(case_key) || interrupted_signal() != 0) return;
  const Strategy& strategy = find_version(version);
  Samples samples;
  Outcome outcome;
  const std::int64_t runs = config.num_warmup_runs + config.num_measure_runs;
  for (std::int64_t run = 0; run < runs && outcome.status == Status::kOk; ++run) {
    outcome = session.attempt([&] { sample(session, strategy, run < config.num_warmup_runs, samples); });
    session.progress(static_cast<double>(run + 1), static_cast<double>(runs), "phase " + version);
  }
  session.finish_progress();
  const json fields = measured(config, samples);
  const std::string total = samples.plain_ms.empty()
                                ? "no sample"
                                : fixed(fields["time_phase_ms"]["total"].get<double>(), 1) + " ms";
  session.record(kName, case_key, outcome, fields, total + " in phases");
}

}  // namespace

Table run_phase(Session& session) {
  const BenchConfig& config = session.config();
  for (const std::string& version : config.versions) run_version(session, version);

  const Results results(session, kName);
  Table table{.headers = {"version", "T"}, .rows = {}};
  for (const char* name : kPhaseNames) table.headers.push_back(name + std::string(" ms"));
  table.headers.insert(table.headers.end(), {"total ms", "plain total ms"});
  for (const std::string& version : config.versions) {
    const json* record = results.find(session.make_case(kName, version, config.T_star));
    const json none = json::object();
    const json phases = record == nullptr ? none : record->value("time_phase_ms", none);
    std::vector<std::string> row = {version, std::to_string(config.T_star)};
    for (const char* name : kPhaseNames) row.push_back(number_text(phases, name, 1));
    row.push_back(number_text(phases, "total", 1));
    row.push_back(record == nullptr ? "-" : number_text(*record, "time_total_ms_median", 1));
    table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace kvfuse::bench
