// perplexity: how well the model predicts a text. The tokens are cut into windows of at most block_size, one
// after the other, and the cache is emptied between them; every token of a window but its first is predicted
// from those before it.
//
// Teacher forcing runs each window in one pass without a cache: versions that differ in their cache alone
// give the same number. Autoregressive runs one token at a time through the version's cache, so that its
// precision shows.
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "benchmark/interrupt.h"
#include "benchmark/suites/scoring.h"
#include "benchmark/suites/suites.h"
#include "benchmark/timer.h"
#include "csrc/text/token_file.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

constexpr const char* kName = "perplexity";

struct Windows {
  std::vector<at::Tensor> batches;  // int64 [windows, length]; equal lengths in a batch
  std::int64_t window = 0;          // tokens of a full one
  std::int64_t count = 0;
  std::int64_t predicted = 0;  // tokens that are scored
};

Windows cut(const std::vector<std::uint16_t>& tokens, const BenchConfig& config) {
  const std::int64_t total =
      std::min<std::int64_t>(static_cast<std::int64_t>(tokens.size()), config.max_tokens.value_or(INT64_MAX));
  at::Tensor ids = at::empty({total}, at::TensorOptions().dtype(at::kLong));
  std::copy_n(tokens.begin(), total, ids.mutable_data_ptr<std::int64_t>());
  Windows windows;
  windows.window = std::min(config.model.block_size, total);
  const std::int64_t full = total / windows.window;
  for (std::int64_t first = 0; first < full; first += config.batch_size) {
    const std::int64_t count = std::min(config.batch_size, full - first);
    windows.batches.push_back(
        ids.narrow(0, first * windows.window, count * windows.window).view({count, windows.window}));
  }
  const std::int64_t rest = total - full * windows.window;
  if (rest >= 2) windows.batches.push_back(ids.narrow(0, full * windows.window, rest).view({1, rest}));
  for (const at::Tensor& batch : windows.batches) {
    windows.count += batch.size(0);
    windows.predicted += batch.size(0) * (batch.size(1) - 1);
  }
  return windows;
}

struct TextSize {
  std::int64_t words = 0;  // runs of anything but white space
  std::int64_t bytes = 0;
};

// Of the scored tokens: every one of a window but its first.
TextSize scored_text(const Windows& windows, const Gpt2Tokenizer& tokenizer) {
  TextSize size;
  for (const at::Tensor& batch : windows.batches)
    for (std::int64_t i = 0; i < batch.size(0); ++i) {
      const at::Tensor row = batch.select(0, i).contiguous();
      const auto* first = row.const_data_ptr<std::int64_t>();
      const std::string text = tokenizer.decode(std::vector<std::uint16_t>(first + 1, first + row.numel()));
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
    for (const at::Tensor& batch : windows_.batches) {
      if (interrupted_signal() != 0) break;
      sum += session_.config().autoregressive ? token_by_token(batch) : one_pass(batch);
    }
    return sum / static_cast<double>(windows_.predicted);
  }

  // From the cached baseline's predictions; null unless the configuration asks for it.
  json divergence() const { return compares_ ? divergence_.summary() : json(nullptr); }

 private:
  double one_pass(const at::Tensor& batch) {
    double sum = 0;
    for (std::int64_t i = 0; i < batch.size(0);
         ++i) {  // one window at a time: the logits are the largest tensor
      const std::int64_t inputs = batch.size(1) - 1;
      const at::Tensor window = batch.narrow(0, i, 1).to(session_.device());
      sum +=
          negative_log_likelihood(model_.forward(window.narrow(1, 0, inputs), nullptr, LogitsOf::kEveryToken),
                                  window.narrow(1, 1, inputs));
      advance(inputs);
      if (interrupted_signal() != 0) break;
    }
    return sum;
  }

  double token_by_token(const at::Tensor& batch) {
    const at::Tensor tokens = batch.to(session_.device());
    const std::int64_t inputs = batch.size(1) - 1;
    std::optional<KvCache> cache = session_.make_cache(strategy_, batch.size(0), inputs);
    std::optional<KvCache> reference;
    if (compares_) reference = session_.make_cache(cached_baseline(), batch.size(0), inputs);
    double sum = 0;
    for (std::int64_t t = 0; t < inputs && interrupted_signal() == 0; ++t) {
      const at::Tensor next = tokens.narrow(1, t, 1);
      const at::Tensor logits = model_.forward(cache ? next : tokens.narrow(1, 0, t + 1),
                                               cache ? &*cache : nullptr, LogitsOf::kLastToken);
      sum += negative_log_likelihood(logits, tokens.narrow(1, t + 1, 1));
      if (reference)
        divergence_.add(
            logits, session_.model(cached_baseline()).forward(next, &*reference, LogitsOf::kLastToken), t);
      advance(batch.size(0));
    }
    return sum;
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

  json measured = {{"dataset", *session.config().dataset},
                   {"dataset_sha256", file.sha256},
                   {"mode", case_key["mode"]},
                   {"window", windows.window},
                   {"stride", windows.window},
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
    throw DataFileError(*session.config().dataset + ": expected at least 2 tokens, got " +
                        std::to_string(file.tokens.size()));
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
