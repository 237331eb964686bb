// max_batch_capacity: how many sequences fit at once. A user is one sequence whose cache has room for prompt
// and T_star tokens. A batch fits if its cache can be allocated, the prompt run and one token more generated:
// memory peaks there. Found by doubling until one does not fit, then by halving the gap. With `training` a
// batch fits if a training step over prompt and T_star tokens a sequence does; no cache takes part, so that
// versions differ only by the layers that share projections.
#include <stdexcept>

#include "benchmark/device.h"
#include "benchmark/interrupt.h"
#include "benchmark/suites/suites.h"
#include "csrc/model/generate.h"
#include "csrc/model/training.h"
#include "csrc/roofline/memory_need.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

constexpr const char* kName = "max_batch_capacity";
constexpr std::int64_t kMostSequences = 1 << 20;  // beyond this nothing is learnt
constexpr double kLearningRate = 6e-4;            // GPT-2's in nanoGPT; the figure does not depend on it

struct Found {
  std::int64_t max_batch = 0;
  std::int64_t trials = 0;
  std::int64_t refused = 0;          // of them those that ran out of memory
  std::int64_t peak_bytes = 0;       // of the largest batch that fits
  std::int64_t baseline_bytes = 0;   // before the search
  std::int64_t remaining_bytes = 0;  // after it
};

class Search {
 public:
  Search(Session& session, const Strategy& strategy)
      : session_(session), strategy_(strategy), model_(session.model(strategy)) {}

  Found run() {
    found_.baseline_bytes = memory_figures(session_.device()).current_bytes;
    std::int64_t refused = 1;
    while (refused <= kMostSequences && fits(refused)) refused *= 2;
    while (refused - found_.max_batch > 1 && interrupted_signal() == 0) {
      const std::int64_t middle = found_.max_batch + (refused - found_.max_batch) / 2;
      if (!fits(middle)) refused = middle;
    }
    found_.remaining_bytes = memory_figures(session_.device()).current_bytes;
    return found_;
  }

 private:
  bool fits(std::int64_t batch) {
    if (interrupted_signal() != 0) return false;
    ++found_.trials;
    session_.progress(static_cast<double>(found_.trials), static_cast<double>(found_.trials + 1),
                      "capacity " + std::string(strategy_.name) + " batch " + std::to_string(batch));
    reset_peak_memory(session_.device());
    const Outcome outcome =
        session_.attempt([&] { session_.config().training ? train_once(batch) : generate_two(batch); });
    // Outside of the handler of the error, which keeps what it unwinds alive on some platforms.
    release_memory(session_.device());
    if (outcome.status == Status::kFailed) throw std::invalid_argument(outcome.reason);
    if (outcome.status != Status::kOk) {
      ++found_.refused;
      return false;
    }
    found_.max_batch = batch;
    found_.peak_bytes = memory_figures(session_.device()).peak_bytes;
    return true;
  }

  void generate_two(std::int64_t batch) {
    const BenchConfig& config = session_.config();
    std::optional<KvCache> cache =
        session_.make_cache(strategy_, batch, config.prompt_length + config.T_star - 1);
    // Without a cache the longest pass is the last, over all that was generated.
    const std::int64_t length = config.prompt_length + (cache ? 0 : config.T_star - 1);
    const at::Tensor prompt = repeated_prompt(batch, length);
    Sampler sampler(session_.sampler_options());
    generate(model_, cache ? &*cache : nullptr, prompt, cache ? 2 : 1, sampler,
             {.on_token = [](const at::Tensor&) { return interrupted_signal() == 0; }});
    synchronize(session_.device());
  }

  // With gradients and moments made anew: what a smaller batch leaves of them is no part of the next one.
  void train_once(std::int64_t batch) {
    const BenchConfig& config = session_.config();
    Trainer trainer(model_.weights());
    trainer.step(repeated_prompt(batch, config.prompt_length + config.T_star), kLearningRate);
    synchronize(session_.device());
  }

  at::Tensor repeated_prompt(std::int64_t batch, std::int64_t length) const {
    const at::Tensor row = session_.inputs().prompt.narrow(0, 0, 1);
    const std::int64_t repeats = (length + row.size(1) - 1) / row.size(1);
    return row.repeat({batch, repeats}).narrow(1, 0, length);
  }

  Session& session_;
  const Strategy& strategy_;
  const Gpt2& model_;
  Found found_;
};

// Of generating alone: what autograd keeps is PyTorch's choice.
json predicted(const Session& session, const Strategy& strategy, const Found& found, std::int64_t budget) {
  const BenchConfig& config = session.config();
  if (config.training)
    return {{"predicted_max_batch", nullptr},
            {"cache_bytes_per_sequence", nullptr},
            {"predicted_activation_bytes", nullptr}};
  const roofline::MemoryNeed need =
      roofline::generation_memory(session.shape(strategy), strategy.use_cache, config.prompt_length,
                                  config.T_star, prompts_at_once(config.prompt_length));
  return {{"predicted_max_batch", need.most_sequences(budget - found.baseline_bytes)},
          {"cache_bytes_per_sequence", need.cache},
          {"predicted_activation_bytes", need.activations(found.max_batch)}};
}

json measured(const Session& session, const Strategy& strategy, const Found& found) {
  const std::int64_t budget = memory_limit(session.config(), session.device());
  json fields = {{"T", session.config().T_star},
                 {"training", session.config().training},
                 {"max_batch", found.max_batch},
                 {"peak_memory_bytes", found.peak_bytes},
                 {"baseline_memory_bytes", found.baseline_bytes},
                 {"memory_after_search_bytes", found.remaining_bytes},
                 {"memory_limit_bytes", budget},
                 {"users_per_gb", static_cast<double>(found.max_batch) / (static_cast<double>(budget) / 1e9)},
                 {"num_trials", found.trials},
                 {"num_out_of_memory", found.refused}};
  fields.update(predicted(session, strategy, found, budget));
  return fields;
}

json case_of(const Session& session, const std::string& version) {
  json key = session.make_case(kName, version, session.config().T_star);
  if (session.config().training) key["training"] = true;
  return key;
}

void run_version(Session& session, const std::string& version) {
  const json case_key = case_of(session, version);
  if (session.done(case_key) || interrupted_signal() != 0) return;
  const Strategy& strategy = find_version(version);
  Found found;
  Outcome outcome = session.attempt([&] { found = Search(session, strategy).run(); });
  session.finish_progress();
  if (outcome.status == Status::kOk && found.max_batch == 0)
    outcome = {Status::kOom, "not even one sequence fits"};
  json fields = {{"T", session.config().T_star}};
  if (outcome.status == Status::kOk) fields = measured(session, strategy, found);
  session.record(kName, case_key, outcome, fields,
                 std::to_string(found.max_batch) + " sequences (predicted " +
                     number_text(fields, "predicted_max_batch", 0) + ")");
}

}  // namespace

Table run_capacity(Session& session) {
  const BenchConfig& config = session.config();
  for (const std::string& version : config.versions) run_version(session, version);

  const Results results(session, kName);
  const std::string cached(cached_baseline().name);
  Table table{.headers = {"version", "T", "max batch", "predicted", "peak MB", "cache MB each",
                          "users per GB", "vs " + cached},
              .rows = {}};
  const json* reference = results.find(case_of(session, cached));
  for (const std::string& version : config.versions) {
    const json* found = results.find(case_of(session, version));
    const json record = found == nullptr ? json::object() : *found;
    const bool comparable = reference != nullptr && found != nullptr;
    table.rows.push_back(
        {version, std::to_string(config.T_star), number_text(record, "max_batch", 0),
         number_text(record, "predicted_max_batch", 0), number_text(record, "peak_memory_bytes", 1, 1e6),
         number_text(record, "cache_bytes_per_sequence", 2, 1e6), number_text(record, "users_per_gb", 2),
         comparable ? fixed(record["max_batch"].get<double>() / (*reference)["max_batch"].get<double>(), 2)
                    : "-"});
  }
  return table;
}

}  // namespace kvfuse::bench
