#include "csrc/model/perplexity.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "csrc/model/overflow.h"
#include "csrc/model/scoring.h"

namespace kvfuse {
namespace {

class Scoring {
 public:
  Scoring(const ScoredModel& scored, const ScoreOptions& options) : scored_(scored), options_(options) {}

  double sum(const Windows& windows) {
    double sum = 0;
    for (const TokenBatch& batch : windows.batches) {
      if (ended_) break;
      sum += options_.autoregressive ? token_by_token(batch) : one_pass(batch);
    }
    return sum;
  }

  const Divergence& divergence() const { return divergence_; }

 private:
  // One window at a time: the logits are the largest tensor.
  double one_pass(const TokenBatch& batch) {
    const Gpt2& model = scored_.model;
    double sum = 0;
    for (std::size_t i = 0; i < batch.lengths.size() && !ended_; ++i) {
      const std::int64_t inputs = batch.lengths[i] - 1;
      const at::Tensor window = on_device(batch.tokens.narrow(0, static_cast<std::int64_t>(i), 1));
      sum +=
          negative_log_likelihood(model.forward(window.narrow(1, 0, inputs), nullptr, LogitsOf::kEveryToken),
                                  window.narrow(1, 1, inputs));
      advance(inputs);
    }
    return sum;
  }

  // Windows that have ended go on with the ids behind them, unseen by the others and not scored.
  double token_by_token(const TokenBatch& batch) {
    const at::Tensor tokens = on_device(batch.tokens);
    const std::int64_t inputs = tokens.size(1) - 1;
    std::optional<KvCache> cache = make_cache(scored_, tokens.size(0), inputs);
    std::optional<KvCache> reference;
    if (options_.reference != nullptr) reference = make_cache(*options_.reference, tokens.size(0), inputs);
    std::int64_t going = tokens.size(0);
    double sum = 0;
    for (std::int64_t t = 0; t < inputs && !ended_; ++t) {
      while (batch.lengths[static_cast<std::size_t>(going - 1)] < t + 2) --going;
      const at::Tensor logits = next_logits(scored_.model, cache, tokens, t).narrow(0, 0, going);
      sum += negative_log_likelihood(logits, tokens.narrow(1, t + 1, 1).narrow(0, 0, going));
      if (options_.reference != nullptr)
        divergence_.add(logits,
                        next_logits(options_.reference->model, reference, tokens, t).narrow(0, 0, going), t);
      advance(going);
    }
    return sum;
  }

  // [batch, 1, vocab_size] behind token t of each sequence.
  at::Tensor next_logits(const Gpt2& model, std::optional<KvCache>& cache, const at::Tensor& tokens,
                         std::int64_t t) const {
    const TokenBatch known(tokens.narrow(1, 0, t + 1));
    if (!cache)
      return model.forward(visible_windows(known, model.config().block_size, options_.overflow), nullptr,
                           LogitsOf::kLastToken);
    make_room(model, *cache, known, options_.overflow);
    return model.forward(tokens.narrow(1, t, 1), &*cache, LogitsOf::kLastToken);
  }

  at::Tensor on_device(const at::Tensor& tokens) const { return tokens.to(scored_.model.weights().device()); }

  static std::optional<KvCache> make_cache(const ScoredModel& scored, std::int64_t batch,
                                           std::int64_t capacity) {
    if (!scored.strategy.use_cache) return std::nullopt;
    const ModelConfig& config = scored.model.config();
    return KvCache(config, scored.strategy, batch, std::min(capacity, config.block_size),
                   scored.model.weights().options());
  }

  void advance(std::int64_t tokens) {
    done_ += tokens;
    if (options_.on_scored && !options_.on_scored(done_)) ended_ = true;
  }

  const ScoredModel& scored_;
  const ScoreOptions& options_;
  Divergence divergence_;
  std::int64_t done_ = 0;
  bool ended_ = false;
};

}  // namespace

Score score(const ScoredModel& scored, const Windows& windows, const ScoreOptions& options) {
  if (windows.predicted < 1) throw std::invalid_argument("score: expected tokens to predict, got none");
  if (!options.autoregressive && (options.overflow.kind != Overflow::kError || options.reference != nullptr))
    throw std::invalid_argument(
        "score: expected autoregressive beside an overflow or a reference, got teacher forcing");
  check_policy(options.overflow, scored.model.config().block_size, scored.strategy.use_cache);
  const c10::InferenceMode inference;
  Scoring scoring(scored, options);
  const double loss = scoring.sum(windows) / static_cast<double>(windows.predicted);
  return {.loss = loss,
          .divergence = options.reference == nullptr ? nlohmann::ordered_json(nullptr)
                                                     : scoring.divergence().summary()};
}

}  // namespace kvfuse
