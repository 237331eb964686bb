#include "csrc/bindings/roofline_json.h"

#include <optional>

namespace kvfuse::roofline {
namespace {

json or_null(const std::optional<double>& value) { return value ? json(*value) : json(nullptr); }

json to_json(const Figure& figure) { return {{"value", figure.value}, {"source", figure.source}}; }

json or_null(const std::optional<Figure>& figure) { return figure ? to_json(*figure) : json(nullptr); }

json to_json(const OperatorPrediction& one) {
  return {{"op", op_name(one.op)},
          {"precision", precision_name(one.precision)},
          {"computed_in", precision_name(one.computed_in)},
          {"storage_only", one.storage_only},
          {"flops", one.flops},
          {"bytes", one.bytes},
          {"ai", one.ai},
          {"critical_ai", one.critical_ai},
          {"memory_ms", one.memory_ms},
          {"compute_ms", one.compute_ms},
          {"time_ms", one.time_ms},
          {"bound", bound_name(one.bound)}};
}

json to_json(const Candidate& candidate) {
  return {{"strategy_name", candidate.strategy_name},
          {"time_ms", candidate.time_ms},
          {"speedup", candidate.speedup},
          {"weight_bytes", candidate.weight_bytes},
          {"kv_cache_bytes", candidate.kv_cache_bytes},
          {"memory_saving", candidate.memory_saving},
          {"quoted_loss_pct", candidate.quoted_loss_pct},
          {"bound", bound_name(candidate.bound)},
          {"admitted", candidate.admitted},
          {"refusal", candidate.refusal}};
}

json to_json(const ValidatedRecord& record) {
  return {{"line", record.line},
          {"benchmark", record.benchmark},
          {"version", record.version},
          {"stage", record.stage},
          {"model", record.model},
          {"dtype", record.dtype},
          {"batch", record.batch},
          {"prompt_length", record.prompt_length},
          {"T", record.T},
          {"measured_ms", record.measured_ms},
          {"predicted_ms", record.predicted_ms},
          {"error", record.error},
          {"shortest_ms", record.shortest_ms},
          {"above_roof", record.above_roof},
          {"flops", record.flops},
          {"bytes", record.bytes}};
}

template <typename T>
json own_list_json(const T& values) {
  json list = json::array();
  for (const auto& value : values) list.push_back(to_json(value));
  return list;
}

}  // namespace

json to_json(const PrecisionInfo& info) {
  const auto& loss = info.quoted_loss;
  return {{"name", info.name},
          {"description", info.description},
          {"payload_bits", info.payload_bits},
          {"bytes_per_element", info.bytes_per_element()},
          {"quoted_loss_pct", loss ? json::array({loss->low_pct, loss->high_pct}) : json(nullptr)}};
}

json to_json(const Hardware& hardware) {
  json peaks = json::object();
  for (const auto& [precision, figure] : hardware.peak_tflop_s)
    peaks[std::string(precision_name(precision))] = to_json(figure);
  return {{"name", hardware.name},
          {"title", hardware.title},
          {"kind", hardware.kind},
          {"profile", profile_name(hardware.profile)},
          {"aliases", hardware.aliases},
          {"bandwidth_gb_s", to_json(hardware.bandwidth_gb_s)},
          {"peak_tflop_s", peaks},
          {"memory_gb", or_null(hardware.memory_gb)},
          {"l2_mb", or_null(hardware.l2_mb)},
          {"multiprocessors", or_null(hardware.multiprocessors)},
          {"note", hardware.note}};
}

json to_json(const GemmPrediction& prediction) {
  return {{"M", prediction.shape.M},
          {"N", prediction.shape.N},
          {"K", prediction.shape.K},
          {"precision", precision_name(prediction.precision)},
          {"computed_in", precision_name(prediction.computed_in)},
          {"storage_only", prediction.storage_only},
          {"flops", prediction.flops},
          {"bytes", prediction.bytes},
          {"weight_bytes", prediction.weight_bytes},
          {"ai", prediction.ai},
          {"critical_ai", prediction.critical_ai},
          {"memory_time_us", prediction.memory_time_us},
          {"compute_time_us", prediction.compute_time_us},
          {"predicted_time_us", prediction.predicted_time_us},
          {"bottleneck", bound_name(prediction.bottleneck)},
          {"predicted_tflops", prediction.predicted_tflops},
          {"predicted_bandwidth_gb_s", prediction.predicted_bandwidth_gb_s}};
}

json to_json(const ModelShape& model) {
  return {{"name", model.name},
          {"architecture", architecture_name(model.architecture)},
          {"n_layer", model.n_layer},
          {"n_embd", model.n_embd},
          {"n_head", model.n_head},
          {"n_kv_head", model.n_kv_head},
          {"head_dim", model.head_dim},
          {"d_ff", model.d_ff},
          {"vocab_size", model.vocab_size},
          {"block_size", model.block_size},
          {"borrowing_layers", model.borrowing_layers},
          {"bias", model.bias}};
}

json to_json(const WeightCount& count) {
  return {{"attention", count.attention}, {"ffn", count.ffn},           {"head", count.head},
          {"embedding", count.embedding}, {"position", count.position}, {"vectors", count.vectors},
          {"total", count.total()}};
}

json to_json(const OperatorPrecisions& precisions) {
  json operators = json::object();
  for (const Op op : kAllOps) operators[std::string(op_name(op))] = precision_name(precisions.at(op));
  return {{"operators", operators},
          {"activations", precision_name(precisions.activations)},
          {"kv_recent_window", precisions.kv_recent_window}};
}

json to_json(const MixedPrecision& strategy) {
  return {{"name", strategy.name},
          {"description", strategy.description},
          {"quoted_loss_pct", strategy.quoted_loss_pct()},
          {"precisions", to_json(strategy.precisions)}};
}

json to_json(const PassPrediction& prediction) {
  return {{"batch", prediction.pass.batch},
          {"past", prediction.pass.past},
          {"tokens", prediction.pass.tokens},
          {"scored", prediction.pass.scored},
          {"operators", own_list_json(prediction.operators)},
          {"flops", prediction.flops},
          {"weight_bytes", prediction.weight_bytes},
          {"cache_bytes", prediction.cache_bytes},
          {"activation_bytes", prediction.activation_bytes},
          {"bytes", prediction.bytes},
          {"ai", prediction.ai},
          {"memory_ms", prediction.memory_ms},
          {"compute_ms", prediction.compute_ms},
          {"time_ms", prediction.time_ms},
          {"shortest_ms", prediction.shortest_ms},
          {"bound", bound_name(prediction.bound)}};
}

json to_json(const GenerationPrediction& prediction) {
  return {{"prefill_ms", prediction.prefill_ms},
          {"first_decode_ms", prediction.first_decode_ms},
          {"last_decode_ms", prediction.last_decode_ms},
          {"decode_ms", prediction.decode_ms},
          {"total_ms", prediction.total_ms},
          {"tokens_per_s", prediction.tokens_per_s},
          {"kv_cache_bytes", prediction.kv_cache_bytes},
          {"weight_bytes", prediction.weight_bytes},
          {"resident_bytes", prediction.resident_bytes},
          {"fits_memory", prediction.fits_memory}};
}

json to_json(const AttentionPrediction& prediction) {
  return {{"kernel", attention_name(prediction.kernel)},
          {"precision", precision_name(prediction.precision)},
          {"flops", prediction.flops},
          {"bytes", prediction.bytes},
          {"ai", prediction.ai},
          {"memory_ms", prediction.memory_ms},
          {"compute_ms", prediction.compute_ms},
          {"memory_efficiency", prediction.efficiency.memory},
          {"compute_efficiency", prediction.efficiency.compute},
          {"source", prediction.efficiency.source},
          {"time_ms", prediction.time_ms},
          {"bound", bound_name(prediction.bound)},
          {"speedup", prediction.speedup}};
}

json to_json(const Recommendation& recommendation) {
  return {{"strategy_name", recommendation.strategy_name},
          {"attention", recommendation.attention},
          {"setting", recommendation.setting},
          {"predicted_time_ms", recommendation.predicted_time_ms},
          {"baseline_time_ms", recommendation.baseline_time_ms},
          {"predicted_speedup", recommendation.predicted_speedup},
          {"memory_saving", recommendation.memory_saving},
          {"weight_bytes", recommendation.weight_bytes},
          {"kv_cache_bytes", recommendation.kv_cache_bytes},
          {"quoted_loss_pct", recommendation.quoted_loss_pct},
          {"meets_min_speedup", recommendation.meets_min_speedup},
          {"bottleneck", bound_name(recommendation.bottleneck)},
          {"precisions", to_json(recommendation.precisions)},
          {"prediction", to_json(recommendation.prediction)},
          {"candidates", own_list_json(recommendation.candidates)},
          {"attentions", own_list_json(recommendation.attentions)},
          {"reasons", recommendation.reasons}};
}

json to_json(const PublishedRow& row) {
  return {{"table", row.table},
          {"name", row.name},
          {"unit", row.unit},
          {"as_published", row.as_published},
          {"complete", or_null(row.complete)},
          {"compat", or_null(row.compat)},
          {"note", row.note}};
}

json to_json(const DynamicDecision& decision) {
  return {{"step", decision.step},
          {"tensor", decision.tensor},
          {"absmax", decision.absmax},
          {"rolling_absmax", decision.rolling_absmax},
          {"outlier_share", decision.outlier_share},
          {"before", precision_name(decision.before)},
          {"after", precision_name(decision.after)},
          {"reason", decision.reason}};
}

json to_json(const CodecQuality& quality) {
  return {{"relative_rms_error", quality.relative_rms_error},
          {"largest_error", quality.largest_error},
          {"signal_to_noise_db", quality.signal_to_noise_db},
          {"bytes_per_element", quality.bytes_per_element}};
}

json to_json(const ModelPoint& point) {
  return {{"hardware", point.hardware},
          {"model", point.model},
          {"strategy", point.strategy},
          {"batch", point.batch},
          {"context", point.context},
          {"time_ms", point.time_ms},
          {"tokens_per_s", point.tokens_per_s},
          {"flops", point.flops},
          {"bytes", point.bytes},
          {"ai", point.ai},
          {"bound", bound_name(point.bound)},
          {"weight_bytes", point.weight_bytes},
          {"kv_cache_bytes", point.kv_cache_bytes},
          {"fits_memory", point.fits_memory}};
}

json to_json(const TimeParts& parts) {
  return {{"products_ms", parts.products_ms},
          {"attention_ms", parts.attention_ms},
          {"elementwise_ms", parts.elementwise_ms},
          {"overhead_ms", parts.overhead_ms},
          {"total_ms", parts.total_ms()}};
}

json to_json(const MachineLimits& limits) {
  return {{"read_bytes_per_s", limits.read_bytes_per_s},
          {"matmul_flops_per_s", limits.matmul_flops_per_s},
          {"ridge", limits.ridge()}};
}

json to_json(const Validation& validation) {
  json skipped = json::array();
  for (const SkippedRecord& one : validation.skipped)
    skipped.push_back({{"line", one.line}, {"reason", one.reason}});
  return {{"machine", validation.machine},
          {"records", own_list_json(validation.records)},
          {"skipped", skipped},
          {"median_absolute_error", or_null(validation.median_absolute_error)},
          {"largest_absolute_error", or_null(validation.largest_absolute_error)},
          {"above_roof", validation.above_roof}};
}

}  // namespace kvfuse::roofline
