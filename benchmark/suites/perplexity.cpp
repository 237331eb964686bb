// perplexity: how well the model predicts a text. Its tokens, or those of each of its documents, are cut into
// windows of at most block_size, one after the other, and the cache is emptied between them; every token of a
// window but its first is predicted from those before it.
//
// Teacher forcing runs each window in one pass without a cache: versions that differ in their cache alone
// give the same number. Autoregressive runs one token at a time through the version's cache, so that its
// precision shows. There, with overflow slide or sink, a text is not cut: what it does beyond block_size is
// what is measured.
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "benchmark/interrupt.h"
#include "benchmark/suites/scoring.h"
#include "benchmark/suites/suites.h"
#include "benchmark/suites/windows.h"
#include "benchmark/timer.h"
#include "csrc/model/overflow.h"
#include "csrc/text/token_file.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

constexpr const char* kName = "perplexity";

struct TextSize {
  std::int64_t words = 0;  // runs of anything but white space
  std::int64_t bytes = 0;
};

// Of the scored tokens: every one of a window but its first.
TextSize scored_text(const Windows& windows, const Gpt2Tokenizer& tokenizer) {
  TextSize size;
  for (const TokenBatch& batch : windows.batches)
    for (std::size_t i = 0; i < batch.lengths.size(); ++i) {
      const auto* first = batch.tokens[static_cast<std::int64_t>(i)].const_data_ptr<std::int64_t>();
      const std::string text =
          tokenizer.decode(std::vector<std::uint16_t>(first + 1, first + batch.lengths[i]));
      size.bytes += static_cast<std::int64_t>(text.size());
      bool inside = false;
      for (const char c : text) {
        const bool space = c == ' ' || (c >= '\t' && c <= '\r');
        if (!space && !inside) ++size.words;
        inside = !space;
      }
    }
  return size;
}

class Perplexity {
 public:
  Perplexity(Session& session, const Windows& windows, const Strategy& strategy)
      : session_(session),
        windows_(windows),
        strategy_(strategy),
        model_(session.model(strategy)),
        compares_(session.config().divergence && session.config().autoregressive &&
                  &strategy != &cached_baseline()) {}

  // Mean -log p over the scored tokens. Stops early when the run is interrupted.
  double loss() {
    const c10::InferenceMode inference;
    double sum = 0;
    for (const TokenBatch& batch : windows_.batches) {
      if (interrupted_signal() != 0) break;
      sum += session_.config().autoregressive ? token_by_token(batch) : one_pass(batch);
    }
    return sum / static_cast<double>(windows_.predicted);
  }

  // From the cached baseline's predictions; null unless the configuration asks for it.
  json divergence() const { return compares_ ? divergence_.summary() : json(nullptr); }

 private:
  // One window at a time: the logits are the largest tensor.
  double one_pass(const TokenBatch& batch) {
    double sum = 0;
    for (std::size_t i = 0; i < batch.lengths.size() && interrupted_signal() == 0; ++i) {
      const std::int64_t inputs = batch.lengths[i] - 1;
      const at::Tensor window = batch.tokens.narrow(0, static_cast<std::int64_t>(i), 1).to(session_.device());
      sum +=
          negative_log_likelihood(model_.forward(window.narrow(1, 0, inputs), nullptr, LogitsOf::kEveryToken),
                                  window.narrow(1, 1, inputs));
      advance(inputs);
    }
    return sum;
  }

  // Windows that have ended go on with the ids behind them, unseen by the others and not scored.
  double token_by_token(const TokenBatch& batch) {
    const at::Tensor tokens = batch.tokens.to(session_.device());
    const std::int64_t inputs = tokens.size(1) - 1;
    std::optional<KvCache> cache = session_.make_cache(strategy_, tokens.size(0), inputs);
    std::optional<KvCache> reference;
    if (compares_) reference = session_.make_cache(cached_baseline(), tokens.size(0), inputs);
    std::int64_t scored = tokens.size(0);
    double sum = 0;
    for (std::int64_t t = 0; t < inputs && interrupted_signal() == 0; ++t) {
      while (batch.lengths[static_cast<std::size_t>(scored - 1)] < t + 2) --scored;
      const at::Tensor logits = next_logits(model_, cache, tokens, t).narrow(0, 0, scored);
      sum += negative_log_likelihood(logits, tokens.narrow(1, t + 1, 1).narrow(0, 0, scored));
      if (reference)
        divergence_.add(
            logits, next_logits(session_.model(cached_baseline()), reference, tokens, t).narrow(0, 0, scored),
            t);
      advance(scored);
    }
    return sum;
  }

  // [batch, 1, vocab_size] behind token t of each sequence.
  at::Tensor next_logits(const Gpt2& model, std::optional<KvCache>& cache, const at::Tensor& tokens,
                         std::int64_t t) const {
    const TokenBatch known(tokens.narrow(1, 0, t + 1));
    const OverflowPolicy policy = session_.config().overflow_policy();
    if (!cache)
      return model.forward(visible_windows(known, model.config().block_size, policy), nullptr,
                           LogitsOf::kLastToken);
    make_room(model, *cache, known, policy);
    return model.forward(tokens.narrow(1, t, 1), &*cache, LogitsOf::kLastToken);
  }

  void advance(std::int64_t tokens) {
    scored_ += tokens;
    session_.progress(static_cast<double>(scored_), static_cast<double>(windows_.predicted),
                      "perplexity " + std::string(strategy_.name));
  }

  Session& session_;
  const Windows& windows_;
  const Strategy& strategy_;
  const Gpt2& model_;
  const bool compares_;
  Divergence divergence_;
  std::int64_t scored_ = 0;
};

json case_of(const Session& session, const std::string& version, const TokenFile& file) {
  json key = session.make_case(kName, version, std::nullopt);
  const BenchConfig& config = session.config();
  key.update({{"dataset_sha256", file.sha256},
              {"mode", config.autoregressive ? "autoregressive" : "teacher_forcing"},
              {"max_tokens", config.max_tokens ? json(*config.max_tokens) : json(nullptr)}});
  if (config.document_separator) key["document_separator"] = *config.document_separator;
  if (config.overflow != Overflow::kError) key["overflow"] = overflow_json(config.overflow_policy());
  return key;
}

// What only the text behind the tokens tells: perplexity by word and by byte of what was scored.
json text_figures(double loss, const Windows& windows, const Inputs& inputs) {
  if (!inputs.tokenizer)
    return {{"word_perplexity", nullptr}, {"byte_perplexity", nullptr}, {"bits_per_byte", nullptr}};
  const TextSize size = scored_text(windows, *inputs.tokenizer);
  const double nats = loss * static_cast<double>(windows.predicted);
  const double nats_per_byte = nats / static_cast<double>(size.bytes);
  return {{"num_words", size.words},
          {"num_bytes", size.bytes},
          {"word_perplexity", std::exp(nats / static_cast<double>(size.words))},
          {"byte_perplexity", std::exp(nats_per_byte)},
          {"bits_per_byte", nats_per_byte / std::log(2.0)}};
}

void run_version(Session& session, const Windows& windows, const TokenFile& file,
                 const std::string& version) {
  const json case_key = case_of(session, version, file);
  if (session.done(case_key) || interrupted_signal() != 0) return;
  double loss = 0;
  json divergence;
  const Timer timer;
  Outcome outcome = session.attempt([&] {
    Perplexity perplexity(session, windows, find_version(version));
    loss = perplexity.loss();
    divergence = perplexity.divergence();
  });
  if (outcome.status == Status::kOk && !std::isfinite(loss))
    outcome = {Status::kFailed, "the loss is not finite (are the weights damaged?)"};
  session.finish_progress();

  json measured = {
      {"dataset", *session.config().dataset},
      {"dataset_sha256", file.sha256},
      {"mode", case_key["mode"]},
      {"window", windows.window},
      {"stride", windows.stride},
      {"overflow", overflow_json(session.config().overflow_policy())},
      {"document_separator",
       session.config().document_separator ? json(*session.config().document_separator) : json(nullptr)},
      {"num_windows", windows.count},
      {"num_tokens", windows.predicted},
      {"bos", nullptr},
      {"elapsed_s", timer.elapsed_ms() / 1e3}};
  if (outcome.status == Status::kOk) {
    measured.update({{"loss", loss},
                     {"perplexity", std::exp(loss)},
                     {"degradation", nullptr},
                     {"divergence", divergence}});
    measured.update(text_figures(loss, windows, session.inputs()));
    const Results results(session, kName);
    const json* baseline = results.find(case_of(session, std::string(cached_baseline().name), file));
    if (baseline != nullptr && (*baseline)["perplexity"].is_number())
      measured["degradation"] = 100.0 * (std::exp(loss) / (*baseline)["perplexity"].get<double>() - 1.0);
  }
  session.record(
      kName, case_key, outcome, measured,
      "perplexity " + number_text(measured, "perplexity", 4) + " over " + std::to_string(windows.predicted) +
          " tokens (" +
          (session.config().weights ? "weights of " + *session.config().weights : "random weights") + ")");
}

}  // namespace

Table run_perplexity(Session& session) {
  const TokenFile& file = *session.inputs().tokens;
  const Windows windows = cut(file.tokens, session.config());
  if (windows.predicted == 0)
    throw DataFileError(*session.config().dataset + ": expected at least 2 tokens" +
                        (session.config().document_separator ? " in a document" : "") + ", got " +
                        std::to_string(file.tokens.size()) +
                        (session.config().document_separator ? " documents of one" : ""));
  for (const std::string& version : session.config().versions) run_version(session, windows, file, version);

  const Results results(session, kName);
  Table table{.headers = {"version", "mode", "tokens", "loss", "perplexity", "degradation %", "seconds"},
              .rows = {}};
  for (const std::string& version : session.config().versions) {
    const json case_key = case_of(session, version, file);
    const json* found = results.find(case_key);
    const json record = found == nullptr ? json::object() : *found;
    table.rows.push_back({version, case_key["mode"].get<std::string>(), number_text(record, "num_tokens", 0),
                          number_text(record, "loss", 6), number_text(record, "perplexity", 4),
                          number_text(record, "degradation", 4), number_text(record, "elapsed_s", 1)});
  }
  return table;
}

}  // namespace kvfuse::bench
