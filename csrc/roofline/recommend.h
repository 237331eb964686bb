// Which strategy and which attention a model should run with on a machine, and the figures that say so.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "csrc/roofline/attention_model.h"
#include "csrc/roofline/pass.h"
#include "csrc/roofline/strategies.h"

namespace kvfuse::roofline {

enum class Phase { kAuto, kDecode, kPrefill };
std::string_view phase_name(Phase phase);
Phase parse_phase(std::string_view name);

// Under kAuto: after a prompt of seq_len tokens an answer of so many.
inline constexpr std::int64_t kAutoNewTokens = 128;

// What bounds a phase, and so what a strategy must save.
enum class Setting {
  kDecode,      // weights are most of what a step reads
  kPrefill,     // matrix products over many rows
  kLongContext  // decode in which K and V in 16 bits are a quarter of the weights or more
};
std::string_view setting_name(Setting setting);
// Of decode, unless the phase is prefill.
Setting choose_setting(const ModelShape& model, Phase phase, std::int64_t seq_len, std::int64_t batch);

inline constexpr double kDefaultQualityLossPct = 1;

struct RecommendRequest {
  ModelShape model;
  Phase phase = Phase::kDecode;  // kAuto: the one that takes longer in 16 bits, see kAutoNewTokens
  std::int64_t seq_len = 4096;   // tokens in the cache at a decode step, or of the prompt
  std::int64_t batch = 1;
  std::optional<double> max_quality_loss_pct;  // by the quoted ranges; nothing: kDefaultQualityLossPct
  std::optional<double> min_speedup;           // over fp16_baseline
  bool allow_storage_only = false;             // also formats that the machine does not compute in
  PassOptions options;
};

// One strategy under the request's phase.
struct Candidate {
  std::string strategy_name;
  double time_ms = 0;
  double speedup = 1;  // over fp16_baseline
  double weight_bytes = 0;
  double kv_cache_bytes = 0;
  double memory_saving = 0;  // share of the baseline's weights and cache
  double quoted_loss_pct = 0;
  Bound bound = Bound::kMemory;
  bool admitted = true;
  std::string refusal;  // why not, if it is not
};

struct Recommendation {
  std::string strategy_name;
  std::string attention;  // "FA3"
  std::string setting;
  double predicted_time_ms = 0;
  double baseline_time_ms = 0;
  double predicted_speedup = 1;
  double memory_saving = 0;
  double weight_bytes = 0;
  double kv_cache_bytes = 0;
  double quoted_loss_pct = 0;
  bool meets_min_speedup = true;
  Bound bottleneck = Bound::kMemory;
  OperatorPrecisions precisions;
  PassPrediction prediction;
  std::vector<Candidate> candidates;  // in the order of mixed_precisions()
  std::vector<AttentionPrediction> attentions;
  std::vector<std::string> reasons;  // sentences, each with the figures it rests on
};

// The fastest of the strategies that lose no more than allowed and that the machine computes in; a cache in 4
// bits only where the context is long. Attention: the fastest kernel that the machine and the strategy's
// cache format admit; of equals the earlier one. Throws std::invalid_argument on what predict_pass refuses.
Recommendation recommend(const Hardware& hardware, const RecommendRequest& request);

}  // namespace kvfuse::roofline
