// roofline: single forward passes, the stages of profile_stages, beside what the machine can do: whether
// memory or arithmetic bounds them, and how near to that bound they come. The stages are sampled in turn.
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <array>
#include <map>

#include "benchmark/device.h"
#include "benchmark/interrupt.h"
#include "benchmark/stages.h"
#include "benchmark/statistics.h"
#include "benchmark/suites/suites.h"
#include "benchmark/timer.h"

namespace kvfuse::bench {
namespace {

constexpr const char* kName = "roofline";

struct Point {
  Stage stage;
  json case_key;
  std::vector<double> samples_ms;
  std::int64_t kv_len = 0;  // tokens in the cache after the last pass, as it says itself
  Outcome outcome;
};

// What the stages of a version share: without a cache both are empty, and off CUDA there is no graph.
struct Prepared {
  std::optional<KvCache> cache;
  std::optional<DecodeGraph> graph;
};

json case_of(const Session& session, const Stage& stage) {
  const BenchConfig& config = session.config();
  json key = session.make_case(kName, std::string(stage.strategy->name), std::nullopt);
  key.update({{"stage", stage.name()},
              {"profile_P", config.profile_P},
              {"num_warmup_runs", config.num_warmup_runs},
              {"num_measure_runs", config.num_measure_runs}});
  return key;
}

// The prompt repeated to P tokens and the one that follows: [batch, P + 1], or P if no more fit the model.
at::Tensor profile_tokens(const Session& session) {
  const BenchConfig& config = session.config();
  const at::Tensor& prompt = session.inputs().prompt;
  const std::int64_t length = std::min(config.profile_P + 1, config.model.block_size);
  return prompt.repeat({1, (length + prompt.size(1) - 1) / prompt.size(1)}).narrow(1, 0, length).contiguous();
}

class Roofline {
 public:
  explicit Roofline(Session& session) : session_(session), config_(session.config()), P_(config_.profile_P) {
    for (const std::string& name : config_.profile_stages) {
      const Stage stage = find_stage(name);
      const json case_key = case_of(session_, stage);
      if (!session_.done(case_key)) points_.push_back({stage, case_key, {}, 0, {}});
    }
  }

  void run() {
    if (points_.empty() || interrupted_signal() != 0) return;
    const roofline::MachineLimits before = limits();
    const std::int64_t runs = config_.num_warmup_runs + config_.num_measure_runs;
    const double total = static_cast<double>(runs) * static_cast<double>(points_.size());
    double done = 0;
    for (std::int64_t run = 0; run < runs; ++run)
      for (Point& point : points_) {
        if (point.outcome.status == Status::kOk)
          point.outcome = session_.attempt([&] { sample(point, run < config_.num_warmup_runs); });
        session_.progress(++done, total, "roofline " + point.stage.name());
      }
    session_.finish_progress();
    const roofline::MachineLimits best = better_of(before, limits());
    for (const Point& point : points_) {
      const json fields = measured(point, best);
      session_.record(kName, point.case_key, point.outcome, fields, announcement(fields));
    }
  }

 private:
  // Beside the square that is always tried, a larger one and the linear layers of the prefill.
  roofline::MachineLimits limits() const {
    const std::int64_t n_embd = config_.model.n_embd;
    const bool on_cpu = session_.device().is_cpu();
    const std::int64_t side = on_cpu ? 1536 : 8192;
    const std::int64_t rows = std::min<std::int64_t>(config_.batch_size * P_, on_cpu ? 2048 : 16384);
    const std::array products = {Product{side, side, side}, Product{rows, n_embd, 3 * n_embd},
                                 Product{rows, n_embd, 4 * n_embd}, Product{rows, 4 * n_embd, n_embd}};
    return measure_limits(scalar_type(config_.dtype), session_.device(), products);
  }

  Prepared& prepared(const Strategy& strategy) {
    const auto found = prepared_.find(strategy.name);
    if (found != prepared_.end()) return found->second;
    Prepared made{.cache = session_.make_cache(strategy, config_.batch_size, tokens_.size(1)), .graph = {}};
    if (made.cache && session_.device().is_cuda() && config_.cuda_graph)
      made.graph.emplace(session_.model(strategy), *made.cache, /*most_tokens=*/1, session_.sampler_options(),
                         config_.overlap_kernels, ops::cuda_services());
    return prepared_.emplace(strategy.name, std::move(made)).first->second;
  }

  void sample(Point& point, bool warmup) {
    if (interrupted_signal() != 0) return;
    const c10::InferenceMode inference;
    if (!tokens_.defined()) tokens_ = profile_tokens(session_);
    const Stage& stage = point.stage;
    const Gpt2& model = session_.model(*stage.strategy);
    Prepared& on = prepared(*stage.strategy);
    KvCache* cache = on.cache ? &*on.cache : nullptr;
    const std::int64_t past = stage.past(P_);
    if (cache != nullptr) fill(model, *cache, past);
    const at::Tensor tokens = tokens_.narrow(1, past, stage.tokens(P_));
    const bool replays = on.graph && past > 0;
    if (replays) on.graph->start(tokens.select(1, 0));

    synchronize(session_.device());
    // A profiler sees one pass of each stage.
    const bool marked = !warmup && point.samples_ms.empty();
    const std::unique_ptr<ops::ProfiledRange> range =
        marked ? profile(session_.device(), stage.name()) : nullptr;
    const Timer timer;
    if (replays)
      on.graph->step();
    else
      model.forward(tokens, cache, LogitsOf::kLastToken);
    synchronize(session_.device());
    const double elapsed_ms = timer.elapsed_ms();
    if (replays) cache->note_appended(1);
    point.kv_len = cache == nullptr ? 0 : cache->length();
    if (!warmup) point.samples_ms.push_back(elapsed_ms);
  }

  // Leaves `length` tokens in the cache, by a prefill if it holds fewer.
  void fill(const Gpt2& model, KvCache& cache, std::int64_t length) const {
    if (cache.length() >= length) return cache.crop(length);
    cache.reset();
    model.forward(tokens_.narrow(1, 0, length), &cache, LogitsOf::kLastToken);
  }

  json measured(const Point& point, const roofline::MachineLimits& limits) const {
    const Stage& stage = point.stage;
    const roofline::Cost cost = roofline::forward_cost(session_.shape(*stage.strategy), config_.batch_size,
                                                       stage.past(P_), stage.tokens(P_));
    const double roof = limits.attainable_flops_per_s(cost.intensity());
    json fields = {{"stage", stage.name()},
                   {"P", P_},
                   {"prompt_length", P_},
                   {"pass_tokens", stage.tokens(P_)},
                   {"kv_len", point.kv_len},
                   {"full_recompute", stage.recomputes()},
                   {"model_flops", cost.flops},
                   {"model_bytes", cost.bytes},
                   {"arithmetic_intensity", cost.intensity()},
                   {"read_bandwidth_bytes_per_s", limits.read_bytes_per_s},
                   {"matmul_flops_per_s", limits.matmul_flops_per_s},
                   {"ridge_intensity", limits.ridge()},
                   {"roof_flops_per_s", roof},
                   {"bound", cost.intensity() < limits.ridge() ? "memory" : "compute"},
                   {"shortest_ms", roofline::shortest_ms(cost, limits)},
                   {"time_total_ms_samples", point.samples_ms},
                   {"hardware_counters",
                    {{"total_flops", nullptr},
                     {"dram_bytes", nullptr},
                     {"time_ns", nullptr},
                     {"kernel_count", nullptr}}}};
    if (point.samples_ms.empty()) return fields;
    const Summary summary = summarize(point.samples_ms);
    const double flops_per_s = cost.flops / summary.median * 1e3;
    const double bytes_per_s = cost.bytes / summary.median * 1e3;
    fields.update({{"time_total_ms_median", summary.median},
                   {"time_total_ms_mean", summary.mean},
                   {"time_total_ms_min", summary.min},
                   {"time_total_ms_std", summary.stddev ? json(*summary.stddev) : json(nullptr)},
                   {"achieved_flops_per_s", flops_per_s},
                   {"achieved_bytes_per_s", bytes_per_s},
                   {"matmul_fraction", flops_per_s / limits.matmul_flops_per_s},
                   {"bandwidth_fraction", bytes_per_s / limits.read_bytes_per_s},
                   {"limit_fraction", flops_per_s / roof}});
    return fields;
  }

  static std::string announcement(const json& fields) {
    if (!fields.contains("limit_fraction")) return "no sample";
    return number_text(fields, "time_total_ms_median", 2) + " ms, " + fields["bound"].get<std::string>() +
           "-bound, " + number_text(fields, "limit_fraction", 2) + " of its roof";
  }

  Session& session_;
  const BenchConfig& config_;
  const std::int64_t P_;
  at::Tensor tokens_;  // made by the first sample, which may meet the memory_budget
  std::vector<Point> points_;
  std::map<std::string_view, Prepared> prepared_;
};

}  // namespace

Table run_roofline(Session& session) {
  Roofline(session).run();

  const BenchConfig& config = session.config();
  const Results results(session, kName);
  Table table{.headers = {"stage", "P", "ms", "GFLOP", "MB", "FLOP/byte", "GFLOP/s", "of peak", "GB/s",
                          "of bandwidth", "roof GFLOP/s", "of roof", "bound", "note"},
              .rows = {}};
  for (const std::string& name : config.profile_stages) {
    const Stage stage = find_stage(name);
    const json* found = results.find(case_of(session, stage));
    const json record = found == nullptr ? json::object() : *found;
    table.rows.push_back(
        {name, std::to_string(config.profile_P), number_text(record, "time_total_ms_median", 2),
         number_text(record, "model_flops", 3, 1e9), number_text(record, "model_bytes", 1, 1e6),
         number_text(record, "arithmetic_intensity", 2), number_text(record, "achieved_flops_per_s", 1, 1e9),
         number_text(record, "matmul_fraction", 2), number_text(record, "achieved_bytes_per_s", 2, 1e9),
         number_text(record, "bandwidth_fraction", 2), number_text(record, "roof_flops_per_s", 1, 1e9),
         number_text(record, "limit_fraction", 2), record.value("bound", "-"),
         stage.recomputes()
             ? "no cache: recomputes " + std::to_string(stage.tokens(config.profile_P)) + " tokens"
             : ""});
  }
  return table;
}

}  // namespace kvfuse::bench
