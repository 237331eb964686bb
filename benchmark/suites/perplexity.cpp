// perplexity: how well the model predicts a text. Its tokens, or those of each of its documents, are cut into
// windows of at most block_size, one after the other, and the cache is emptied between them; every token of a
// window but its first is predicted from those before it.
//
// Teacher forcing runs each window in one pass without a cache: versions that differ in their cache alone
// give the same number. Autoregressive runs one token at a time through the version's cache, so that its
// precision shows. There, with overflow slide or sink, a text is not cut: what it does beyond block_size is
// what is measured.
#include <cmath>

#include "benchmark/interrupt.h"
#include "benchmark/suites/suites.h"
#include "benchmark/timer.h"
#include "csrc/model/perplexity.h"
#include "csrc/records/perplexity_record.h"
#include "csrc/text/token_file.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

PerplexityFacts facts_of(const BenchConfig& config, const TokenFile& file) {
  return {.dataset = *config.dataset,
          .dataset_sha256 = file.sha256,
          .autoregressive = config.autoregressive,
          .max_tokens = config.max_tokens,
          .document_separator = config.document_separator,
          .overflow = config.overflow_policy()};
}

CutOptions cut_options(const BenchConfig& config) {
  return {.block_size = config.model.block_size,
          .batch_size = config.batch_size,
          .max_tokens = config.max_tokens,
          .document_separator = config.document_separator,
          .overflow = config.overflow_policy()};
}

Score score_version(Session& session, const Windows& windows, const Strategy& strategy) {
  const BenchConfig& config = session.config();
  const ScoredModel scored{session.model(strategy), strategy};
  const bool compares = config.divergence && config.autoregressive && &strategy != &cached_baseline();
  const ScoredModel baseline{compares ? session.model(cached_baseline()) : scored.model, cached_baseline()};
  return score(scored, windows,
               {.autoregressive = config.autoregressive,
                .overflow = config.overflow_policy(),
                .reference = compares ? &baseline : nullptr,
                .on_scored = [&](std::int64_t tokens) {
                  session.progress(static_cast<double>(tokens), static_cast<double>(windows.predicted),
                                   "perplexity " + std::string(strategy.name));
                  return interrupted_signal() == 0;
                }});
}

void run_version(Session& session, const Windows& windows, const PerplexityFacts& facts,
                 const Strategy& strategy) {
  const json case_key = perplexity_case(session.facts(), facts, strategy);
  if (session.done(case_key) || interrupted_signal() != 0) return;
  Score found;
  const Timer timer;
  Outcome outcome = session.attempt([&] { found = score_version(session, windows, strategy); });
  if (const std::string problem = score_problem(found); outcome.status == Status::kOk && !problem.empty())
    outcome = {Status::kFailed, problem};
  session.finish_progress();

  json measured = perplexity_fields(facts, windows, timer.elapsed_ms() / 1e3);
  if (outcome.status == Status::kOk) {
    const std::optional<Gpt2Tokenizer>& tokenizer = session.inputs().tokenizer;
    std::optional<TextSize> text;
    if (tokenizer)
      text = scored_text(windows, [&](std::span<const std::uint16_t> ids) { return tokenizer->decode(ids); });
    std::optional<double> baseline =
        recorded_perplexity(session.log(), perplexity_case(session.facts(), facts, cached_baseline()));
    measured.update(score_fields(found, windows, text, baseline));
  }
  session.record(
      kPerplexityName, case_key, outcome, measured,
      "perplexity " + number_text(measured, "perplexity", 4) + " over " + std::to_string(windows.predicted) +
          " tokens (" +
          (session.config().weights ? "weights of " + *session.config().weights : "random weights") + ")");
}

}  // namespace

Table run_perplexity(Session& session) {
  const TokenFile& file = *session.inputs().tokens;
  const Windows windows = cut(file.tokens, cut_options(session.config()));
  const PerplexityFacts facts = facts_of(session.config(), file);
  if (windows.predicted == 0)
    throw DataFileError(*session.config().dataset + ": expected at least 2 tokens" +
                        (session.config().document_separator ? " in a document" : "") + ", got " +
                        std::to_string(file.tokens.size()) +
                        (session.config().document_separator ? " documents of one" : ""));
  for (const std::string& version : session.config().versions)
    run_version(session, windows, facts, find_version(version));

  const Results results(session, kPerplexityName);
  Table table{.headers = {"version", "mode", "tokens", "loss", "perplexity", "degradation %", "seconds"},
              .rows = {}};
  for (const std::string& version : session.config().versions) {
    const json case_key = perplexity_case(session.facts(), facts, find_version(version));
    const json* found = results.find(case_key);
    const json record = found == nullptr ? json::object() : *found;
    table.rows.push_back({version, case_key["mode"].get<std::string>(), number_text(record, "num_tokens", 0),
                          number_text(record, "loss", 6), number_text(record, "perplexity", 4),
                          number_text(record, "degradation", 4), number_text(record, "elapsed_s", 1)});
  }
  return table;
}

}  // namespace kvfuse::bench
