#include "csrc/roofline/recommend.h"

#include <array>
#include <cstdio>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

constexpr std::array<std::string_view, 3> kPhaseNames = {"auto", "decode", "prefill"};
constexpr std::array<std::string_view, 3> kSettingNames = {"decode", "prefill", "long_context"};

// From this share of the weights on, reading K and V is worth formats of its own.
constexpr double kLongContextShare = 0.25;

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

Pass pass_of(const RecommendRequest& request, Setting setting) {
  if (setting == Setting::kPrefill) return {.batch = request.batch, .past = 0, .tokens = request.seq_len};
  return {.batch = request.batch, .past = request.seq_len - 1, .tokens = 1};
}

Phase chosen_phase(const Hardware& hardware, const RecommendRequest& request) {
  if (request.phase != Phase::kAuto) return request.phase;
  const OperatorPrecisions fp16 = all_in(Precision::kFp16);
  const auto time_ms = [&](const Pass& pass) {
    return predict_checked_pass(hardware, request.model, pass, fp16, request.options).time_ms;
  };
  const double prompt_ms = time_ms({.batch = request.batch, .past = 0, .tokens = request.seq_len});
  const double step_ms = time_ms({.batch = request.batch, .past = request.seq_len, .tokens = 1});
  return prompt_ms > kAutoNewTokens * step_ms ? Phase::kPrefill : Phase::kDecode;
}

std::string refusal(const Hardware& hardware, const MixedPrecision& strategy, const RecommendRequest& request,
                    Setting setting) {
  const double most_loss = request.max_quality_loss_pct.value_or(kDefaultQualityLossPct);
  if (strategy.quoted_loss_pct() > most_loss)
    return "its formats are quoted to lose up to " + number_text(strategy.quoted_loss_pct()) +
           " %, more than the " + number_text(most_loss) + " % allowed";
  const std::vector<Precision> missing = strategy.not_native(hardware);
  if (!missing.empty() && !request.allow_storage_only)
    return hardware.name + " does not compute in " + std::string(precision_name(missing.front()));
  const bool narrow_cache = precision_info(strategy.precisions.kv().precision).payload_bits < 8;
  if (narrow_cache && setting != Setting::kLongContext)
    return "a cache in 4 bits pays only where K and V are a quarter of the weights or more";
  return "";
}

Candidate candidate_of(const Hardware& hardware, const MixedPrecision& strategy,
                       const RecommendRequest& request, Setting setting) {
  const PassPrediction prediction = predict_checked_pass(hardware, request.model, pass_of(request, setting),
                                                         strategy.precisions, request.options);
  const std::string why_not = refusal(hardware, strategy, request, setting);
  return {.strategy_name = std::string(strategy.name),
          .time_ms = prediction.time_ms,
          .weight_bytes = resident_weight_bytes(request.model, strategy.precisions),
          .kv_cache_bytes = kv_cache_bytes(request.model, static_cast<double>(request.seq_len),
                                           static_cast<double>(request.batch), strategy.precisions.kv()),
          .quoted_loss_pct = strategy.quoted_loss_pct(),
          .bound = prediction.bound,
          .admitted = why_not.empty(),
          .refusal = why_not};
}

// Whether a kernel runs on the machine, and over a cache of that format.
bool is_available(AttentionKernel kernel, const Hardware& hardware, Precision kv) {
  const bool cpu = hardware.kind == "cpu";
  switch (kernel) {
    case AttentionKernel::kStandard:
      return cpu;
    case AttentionKernel::kFlash1:
      return false;  // FA2 runs on the same machines and is never slower
    case AttentionKernel::kFlash2:
      return !cpu;
    case AttentionKernel::kFlash3:
    case AttentionKernel::kFlash4:
      return !cpu && hardware.is_native(Precision::kFp8);
    case AttentionKernel::kKvfuseInt8:
      return cpu || kv == Precision::kInt8;
  }
  return false;
}

void choose_attention(const Hardware& hardware, const RecommendRequest& request, Setting setting,
                      Recommendation& result) {
  const Pass pass = pass_of(request, setting);
  const AttentionShape shape{.batch = request.batch,
                             .n_head = request.model.n_head,
                             .n_kv_head = request.model.n_kv_head,
                             .head_dim = request.model.head_dim,
                             .query_tokens = pass.tokens,
                             .kv_len = pass.seen()};
  const Precision kv = result.precisions.kv().precision;
  // A 4-bit cache is widened to FP8 on its way into the kernel.
  const Precision asked = precision_info(kv).payload_bits < 8 ? Precision::kFp8 : kv;
  const bool prefill = setting == Setting::kPrefill;
  const AttentionPrediction* best = nullptr;
  result.attentions.reserve(kAllAttentionKernels.size());  // best points into it
  for (const AttentionKernel kernel : kAllAttentionKernels) {
    if (!is_available(kernel, hardware, kv)) continue;
    if (prefill && kernel == AttentionKernel::kKvfuseInt8) continue;
    result.attentions.push_back(predict_attention(hardware, kernel, shape, asked));
    if (best == nullptr || result.attentions.back().time_ms < best->time_ms) best = &result.attentions.back();
  }
  result.attention = attention_name(best->kernel);
  result.reasons.push_back("Attention " + result.attention + ": " + fixed(best->time_ms * 1e3, 1) +
                           " us a layer with K and V in " + std::string(precision_name(best->precision)) +
                           ", the least of the kernels that run on " + hardware.name + " (" +
                           std::string(best->efficiency.source) + ").");
}

void explain(const Hardware& hardware, const RecommendRequest& request, Recommendation& result) {
  const PassPrediction& pass = result.prediction;
  const IntensityCount low = count_below(pass, 10);
  result.reasons.push_back(result.strategy_name + " takes " + fixed(result.predicted_time_ms, 2) +
                           " ms where fp16_baseline takes " + fixed(result.baseline_time_ms, 2) +
                           " ms: " + fixed(result.predicted_speedup, 2) + " times as fast.");
  result.reasons.push_back(
      "A pass moves " + fixed(pass.bytes / 1e9, 3) + " GB (weights " + fixed(pass.weight_bytes / 1e9, 3) +
      ", K and V " + fixed(pass.cache_bytes / 1e9, 3) + ", activations " +
      fixed(pass.activation_bytes / 1e9, 3) + ") at " + number_text(hardware.bandwidth_gb_s.value) +
      " GB/s and computes " + fixed(pass.flops / 1e9, 1) + " GFLOP: it is bound by " +
      (pass.bound == Bound::kMemory ? "memory." : "arithmetic."));
  result.reasons.push_back(std::to_string(low.below) + " of " + std::to_string(low.all) +
                           " operators do less than 10 FLOPs a byte; the machine's ridge in FP16 is " +
                           fixed(critical_intensity(hardware, Precision::kFp16), 0) + ".");
  const double crossover = kv_crossover_tokens(request.model, result.weight_bytes,
                                               static_cast<double>(request.batch), result.precisions.kv());
  result.reasons.push_back("K and V outweigh the weights from a context of " + fixed(crossover, 0) +
                           " tokens on at batch " + std::to_string(request.batch) + ".");
  if (!hardware.memory_gb) return;
  const double resident_gb = (result.weight_bytes + result.kv_cache_bytes) / 1e9;
  result.reasons.push_back("Weights and cache take " + fixed(resident_gb, 2) + " GB; " + hardware.name +
                           " has " + number_text(hardware.memory_gb->value) +
                           (resident_gb > hardware.memory_gb->value ? " GB: they do not fit." : " GB."));
}

}  // namespace

std::string_view phase_name(Phase phase) { return kPhaseNames[static_cast<std::size_t>(phase)]; }

Phase parse_phase(std::string_view name) {
  for (const Phase phase : {Phase::kAuto, Phase::kDecode, Phase::kPrefill})
    if (normal_name(name) == phase_name(phase)) return phase;
  unknown_name("phase", name, std::vector<std::string>(kPhaseNames.begin(), kPhaseNames.end()));
}

std::string_view setting_name(Setting setting) { return kSettingNames[static_cast<std::size_t>(setting)]; }

Setting choose_setting(const ModelShape& model, Phase phase, std::int64_t seq_len, std::int64_t batch) {
  if (phase == Phase::kPrefill) return Setting::kPrefill;
  const double weights = resident_weight_bytes(model, all_in(Precision::kFp16));
  const double kv = kv_cache_bytes(model, static_cast<double>(seq_len), static_cast<double>(batch), {});
  return kv >= kLongContextShare * weights ? Setting::kLongContext : Setting::kDecode;
}

Recommendation recommend(const Hardware& hardware, const RecommendRequest& request) {
  check_model(request.model);
  check_range("seq_len", request.seq_len, 1, kMostTokens);
  check_range("batch", request.batch, 1, kMostBatch);
  if (request.max_quality_loss_pct) check_not_negative("max_quality_loss_pct", *request.max_quality_loss_pct);
  if (request.min_speedup) check_positive("min_speedup", *request.min_speedup);

  const Setting setting =
      choose_setting(request.model, chosen_phase(hardware, request), request.seq_len, request.batch);
  Recommendation result;
  result.setting = setting_name(setting);
  const Candidate* best = nullptr;
  result.candidates.reserve(mixed_precisions().size());  // best points into it
  for (const MixedPrecision& strategy : mixed_precisions()) {
    Candidate candidate = candidate_of(hardware, strategy, request, setting);
    const Candidate& baseline = result.candidates.empty() ? candidate : result.candidates.front();
    candidate.speedup = baseline.time_ms / candidate.time_ms;
    candidate.memory_saving = 1 - (candidate.weight_bytes + candidate.kv_cache_bytes) /
                                      (baseline.weight_bytes + baseline.kv_cache_bytes);
    result.candidates.push_back(candidate);
    if (candidate.admitted && (best == nullptr || candidate.time_ms < best->time_ms))
      best = &result.candidates.back();
  }
  // The baseline loses nothing and is in every machine's reach.
  result.strategy_name = best->strategy_name;
  result.predicted_time_ms = best->time_ms;
  result.baseline_time_ms = result.candidates.front().time_ms;
  result.predicted_speedup = best->speedup;
  result.memory_saving = best->memory_saving;
  result.weight_bytes = best->weight_bytes;
  result.kv_cache_bytes = best->kv_cache_bytes;
  result.quoted_loss_pct = best->quoted_loss_pct;
  result.bottleneck = best->bound;
  result.meets_min_speedup = !request.min_speedup || best->speedup >= *request.min_speedup;
  result.precisions = find_mixed_precision(best->strategy_name).precisions;
  result.prediction = predict_checked_pass(hardware, request.model, pass_of(request, setting),
                                           result.precisions, request.options);
  explain(hardware, request, result);
  choose_attention(hardware, request, setting, result);
  for (const Candidate& candidate : result.candidates)
    if (!candidate.admitted)
      result.reasons.push_back(candidate.strategy_name + " is left out: " + candidate.refusal + ".");
  if (!result.meets_min_speedup)
    result.reasons.push_back("No admitted strategy reaches the speed-up of " +
                             number_text(*request.min_speedup) + " asked for.");
  return result;
}

}  // namespace kvfuse::roofline
