// latency_vs_T: the time to generate T tokens after a prompt. The versions of one T are sampled in turn, so
// that a slow moment of the machine meets all of them.
#include <algorithm>
#include <cmath>
#include <map>

#include "benchmark/device.h"
#include "benchmark/interrupt.h"
#include "benchmark/statistics.h"
#include "benchmark/suites/suites.h"
#include "benchmark/timer.h"
#include "csrc/model/generate.h"
#include "csrc/records/read_bandwidth.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

constexpr const char* kName = "latency_vs_T";
// The machine's limits are looked at again once they are so old: a shared one gives more at one moment than
// at another, and what it gave while samples were taken is what they are set beside.
constexpr double kLimitsAgeMs = 3000;
constexpr double kGlanceEveryMs = 100;    // at the CPU's read bandwidth, while a sample is taken
constexpr double kNoisyVariation = 0.05;  // standard deviation over mean above which a record is marked

// One version at one T.
struct Point {
  const Strategy* strategy;
  json case_key;
  std::vector<double> samples_ms;
  std::vector<double> read_bytes_per_s;  // the CPU's read bandwidth during each sample
  Outcome outcome;
};

// The CPU's read bandwidth while a sample is taken.
class BandwidthWatch {
 public:
  explicit BandwidthWatch(c10::Device device) : on_cpu_(device.is_cpu()) {}

  void glance() {
    if (!on_cpu_) return;
    const Timer timer;
    rates_.push_back(glance_at_read_bandwidth());
    spent_ms_ += timer.elapsed_ms();
    since_last_.restart();
  }
  void glance_if_due() {
    if (since_last_.elapsed_ms() > kGlanceEveryMs) glance();
  }
  double spent_ms() const { return spent_ms_; }  // to be taken off the sample
  std::optional<double> bytes_per_s() const {
    return rates_.empty() ? std::nullopt : std::optional(median(rates_));
  }

 private:
  bool on_cpu_;
  std::vector<double> rates_;
  double spent_ms_ = 0;
  Timer since_last_;
};

class Latency {
 public:
  explicit Latency(Session& session) : session_(session), config_(session.config()) {
    for (const std::int64_t T : config_.T_values)
      for (const Point& point : points_of(T)) total_work_ += work_of(point, T) * runs();
  }

  void run() {
    for (const std::int64_t T : config_.T_values) {
      std::vector<Point> points = points_of(T);
      if (points.empty()) continue;
      LimitsByWeights best = limits();
      Timer age;
      for (std::int64_t run = 0; run < runs(); ++run)
        for (Point& point : points) {
          if (point.outcome.status != Status::kOk) continue;
          sample(point, T, run < config_.num_warmup_runs);
          if (age.elapsed_ms() < kLimitsAgeMs) continue;
          improve(best);
          age.restart();
        }
      improve(best);
      for (const Point& point : points)
        session_.record(kName, point.case_key, point.outcome,
                        measured(point, T, best.at(point.strategy->weight_dtype)), announcement(point, T));
      if (interrupted_signal() != 0) return;
    }
  }

 private:
  // What the machine allows versions that keep their weights as the key says.
  using LimitsByWeights = std::map<WeightDtype, roofline::MachineLimits>;

  LimitsByWeights limits() const {
    const at::ScalarType dtype = scalar_type(config_.dtype);
    const roofline::MachineLimits floats = measure_limits(dtype, session_.device());
    LimitsByWeights found;
    for (const std::string& version : config_.versions) {
      const auto [entry, added] = found.emplace(find_version(version).weight_dtype, floats);
      if (added && entry->first != WeightDtype::kModel)
        entry->second.matmul_flops_per_s =
            std::max(floats.matmul_flops_per_s, measure_code_products(dtype, entry->first));
    }
    return found;
  }

  void improve(LimitsByWeights& best) const {
    for (const auto& [weights, more] : limits()) best.at(weights) = better_of(best.at(weights), more);
  }

  std::int64_t runs() const { return config_.num_warmup_runs + config_.num_measure_runs; }

  std::vector<Point> points_of(std::int64_t T) const {
    std::vector<Point> points;
    for (const std::string& version : config_.versions) {
      const json case_key = session_.make_case(kName, version, T);
      if (!session_.done(case_key)) points.push_back({&find_version(version), case_key, {}, {}, {}});
    }
    return points;
  }

  // What a run costs compared with others, for the progress bar: tokens that pass through the model.
  double work_of(const Point& point, std::int64_t T) const {
    const double tokens = static_cast<double>(T);
    const double prompt = static_cast<double>(config_.prompt_length);
    if (point.strategy->use_cache) return tokens * 6;  // a lone token takes as long as six of a long pass
    return tokens * (6 + prompt + tokens / 2);
  }

  void sample(Point& point, std::int64_t T, bool warmup) {
    const std::string label = "latency " + std::string(point.strategy->name) + " T=" + std::to_string(T);
    const double work = work_of(point, T);
    point.outcome = session_.attempt([&] {
      Sampler sampler(session_.sampler_options());
      const Gpt2& model = session_.model(*point.strategy);
      const at::Tensor& prompt = session_.inputs().prompt;
      Session::Captured* captured = session_.captured(*point.strategy);
      // The last token is sampled but not run, so the cache ends one short of prompt + T.
      std::optional<KvCache> cache;
      if (captured == nullptr)
        cache = session_.make_cache(*point.strategy, config_.batch_size, config_.prompt_length + T - 1);
      std::int64_t generated = 0;
      BandwidthWatch watch(session_.device());
      const auto on_token = [&](const at::Tensor&) {
        ++generated;
        watch.glance_if_due();
        if (generated % 16 == 0)
          session_.progress(done_work_ + work * static_cast<double>(generated) / static_cast<double>(T),
                            total_work_, label);
        return interrupted_signal() == 0;
      };
      const GenerateOptions options{.on_token = on_token, .overflow = session_.overflow(T)};
      watch.glance();
      const double before_ms = watch.spent_ms();
      const Timer timer;
      if (captured != nullptr)
        generate(model, captured->cache, captured->graph, prompt, T, sampler, options);
      else
        generate(model, cache ? &*cache : nullptr, prompt, T, sampler, options);
      synchronize(session_.device());
      const double elapsed_ms = timer.elapsed_ms() - (watch.spent_ms() - before_ms);
      watch.glance();
      if (warmup || generated != T) return;
      point.samples_ms.push_back(elapsed_ms);
      if (const auto rate = watch.bytes_per_s()) point.read_bytes_per_s.push_back(*rate);
    });
    done_work_ += work;
    session_.progress(done_work_, total_work_, label);
  }

  // The least that a sample of `point` takes, at the read bandwidth of `limits`.
  roofline::GenerationCost cost_of(const Point& point, std::int64_t T,
                                   const roofline::MachineLimits& limits) const {
    const OverflowPolicy overflow = session_.overflow(T);
    roofline::SeenTokens seen;
    if (overflow.kind != Overflow::kError)
      seen = {.most = config_.model.block_size,
              .keep = overflow.keep,
              .run_again = overflow.kind == Overflow::kSlide};
    return roofline::generation_cost(session_.shape(*point.strategy), point.strategy->use_cache,
                                     config_.batch_size, config_.prompt_length, T, limits, seen);
  }

  // `best`: the most that the machine gave while the versions of this T were sampled.
  json measured(const Point& point, std::int64_t T, const roofline::MachineLimits& best) const {
    const roofline::GenerationCost cost = cost_of(point, T, best);
    json fields = {{"T", T},
                   {"overflow", overflow_json(session_.overflow(T))},
                   {"time_total_ms_samples", point.samples_ms},
                   {"read_bandwidth_bytes_per_s_samples", point.read_bytes_per_s},
                   {"read_bandwidth_best_bytes_per_s", best.read_bytes_per_s},
                   {"model_bytes", cost.total.bytes / static_cast<double>(T)},
                   {"model_flops", cost.total.flops / static_cast<double>(T)},
                   {"matmul_flops_per_s", best.matmul_flops_per_s}};
    if (point.samples_ms.empty()) return fields;
    std::vector<double> bandwidths = point.read_bytes_per_s;
    bandwidths.resize(point.samples_ms.size(), best.read_bytes_per_s);
    // The limits of the moments that the median was measured at: medians taken apart may contradict each
    // other where the bandwidth changes from sample to sample.
    std::vector<double> moments, shortest_ms;
    for (const std::size_t i : middle(point.samples_ms)) {
      roofline::MachineLimits moment = best;
      moment.read_bytes_per_s = bandwidths[i];
      moments.push_back(bandwidths[i]);
      shortest_ms.push_back(cost_of(point, T, moment).shortest_ms);
    }
    const Summary summary = summarize(point.samples_ms);
    const auto optional = [](const std::optional<double>& value) {
      return value ? json(*value) : json(nullptr);
    };
    fields.update(
        {{"time_total_ms_median", summary.median},
         {"time_total_ms_mean", summary.mean},
         {"time_total_ms_min", summary.min},
         {"time_total_ms_p95", summary.p95},
         {"time_total_ms_std", optional(summary.stddev)},
         {"time_total_ms_ci95", optional(summary.ci95_half_width)},
         {"time_per_token_ms_median", summary.median / static_cast<double>(T)},
         {"read_bandwidth_bytes_per_s", mean(moments)},
         {"shortest_ms", mean(shortest_ms)},
         {"limit_fraction", mean(shortest_ms) / summary.median},
         {"quality", summary.stddev.value_or(0) > kNoisyVariation * summary.mean ? "noisy" : "ok"}});
    return fields;
  }

  std::string announcement(const Point& point, std::int64_t T) const {
    if (point.samples_ms.empty()) return "no sample";
    const double total_ms = median(point.samples_ms);
    return fixed(total_ms, 1) + " ms, " + fixed(total_ms / static_cast<double>(T), 2) + " ms a token";
  }

  Session& session_;
  const BenchConfig& config_;
  double total_work_ = 0;
  double done_work_ = 0;
};

// "1.52 [1.50, 1.55]": how many times as fast as `reference`.
std::string speedup_text(const json* reference, const json& record) {
  if (reference == nullptr) return "-";
  if (*reference == record) return "1.00";
  const auto samples = [](const json& from) {
    return from.value("time_total_ms_samples", std::vector<double>());
  };
  if (samples(*reference).empty() || samples(record).empty()) return "-";
  const Ratio ratio = ratio_of_medians(samples(*reference), samples(record));
  return fixed(ratio.value, 2) + " [" + fixed(ratio.low, 2) + ", " + fixed(ratio.high, 2) + "]";
}

Table summary_of(Session& session) {
  const Results results(session, kName);
  const std::string uncached(uncached_baseline().name);
  const std::string cached(cached_baseline().name);
  Table table{
      .headers = {"T", "version", "total ms", "ms/token", "vs " + uncached, "vs " + cached, "limit_fraction"},
      .rows = {}};
  for (const std::int64_t T : session.config().T_values)
    for (const std::string& version : session.config().versions) {
      const json* record = results.find(session.make_case(kName, version, T));
      if (record == nullptr) {
        table.rows.push_back({std::to_string(T), version, "-", "-", "-", "-", "-"});
        continue;
      }
      const auto against = [&](const std::string& name) {
        return speedup_text(results.find(session.make_case(kName, name, T)), *record);
      };
      table.rows.push_back({std::to_string(T), version, number_text(*record, "time_total_ms_median", 1),
                            number_text(*record, "time_per_token_ms_median", 2), against(uncached),
                            against(cached), number_text(*record, "limit_fraction", 2)});
    }
  return table;
}

}  // namespace

Table run_latency(Session& session) {
  Latency(session).run();
  session.finish_progress();
  return summary_of(session);
}

}  // namespace kvfuse::bench
