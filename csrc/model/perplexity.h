// How well a model predicts a text: the mean loss over its windows.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>

#include "csrc/model/gpt2.h"
#include "csrc/model/overflow_policy.h"
#include "csrc/model/windows.h"

namespace kvfuse {

// A model with the strategy that its weights were prepared for.
struct ScoredModel {
  const Gpt2& model;
  const Strategy& strategy;
};

// Told how many tokens are scored; false ends the scoring early.
using OnScored = std::function<bool(std::int64_t scored)>;

struct ScoreOptions {
  // One token at a time through the strategy's cache, so that its precision shows. Else each window is one
  // pass without a cache: strategies that differ in their cache alone give the same number.
  bool autoregressive = false;
  OverflowPolicy overflow = {};            // as the windows were cut; only autoregressive
  const ScoredModel* reference = nullptr;  // only autoregressive: how far the predictions are from this one's
  OnScored on_scored = {};
};

struct Score {
  double loss = 0;                    // mean -log p in nats over all that `windows` predicts
  nlohmann::ordered_json divergence;  // Divergence::summary(); null without a reference
};

// The tokens of `windows` are on any device; at least one must be predicted. A score that was ended early
// means nothing. Throws std::invalid_argument.
Score score(const ScoredModel& scored, const Windows& windows, const ScoreOptions& options);

}  // namespace kvfuse
