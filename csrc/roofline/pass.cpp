#include "csrc/roofline/pass.h"

#include <algorithm>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

OperatorPrediction predict_operator(const Hardware& hardware, Op op, const OperatorCost& cost, double bytes,
                                    const OperatorPrecisions& precisions) {
  // Without products an operator computes on activations, whatever its weights or the cache are kept in.
  const bool multiplies = cost.product_flops > 0;
  const Precision arithmetic = multiplies ? precisions.at(op) : precisions.activations;
  const Peak peak = peak_of(hardware, arithmetic);
  OperatorPrediction result{.op = op,
                            .precision = precisions.at(op),
                            .computed_in = peak.computed_in,
                            .storage_only = peak.storage_only,
                            .flops = cost.flops(),
                            .bytes = bytes,
                            .ai = bytes > 0 ? cost.flops() / bytes : 0,
                            .critical_ai = peak.flops_per_s / hardware.bytes_per_s(),
                            .memory_ms = 1e3 * bytes / hardware.bytes_per_s(),
                            .compute_ms = 1e3 * cost.flops() / peak.flops_per_s};
  result.time_ms = std::max(result.memory_ms, result.compute_ms);
  result.bound = slower_limit(result.memory_ms, result.compute_ms);
  return result;
}

}  // namespace

PassPrediction predict_checked_pass(const Hardware& hardware, const ModelShape& model, const Pass& pass,
                                    const OperatorPrecisions& precisions, const PassOptions& options) {
  const OperatorCosts costs = operator_costs(model, pass, precisions);
  PassPrediction result{.pass = pass, .operators = {}};
  for (const Op op : kAllOps) {
    OperatorCost cost = costs[index_of(op)];
    if (!options.count_activations) cost.activation_bytes = 0;
    const OperatorPrediction one = predict_operator(hardware, op, cost, cost.bytes(), precisions);
    result.operators[index_of(op)] = one;
    result.flops += one.flops;
    result.weight_bytes += cost.weight_bytes;
    result.cache_bytes += cost.cache_bytes;
    result.activation_bytes += cost.activation_bytes;
    result.memory_ms += one.memory_ms;
    result.compute_ms += one.compute_ms;
    result.time_ms += one.time_ms;
  }
  result.bytes = result.weight_bytes + result.cache_bytes + result.activation_bytes;
  result.ai = result.flops / result.bytes;
  result.shortest_ms = std::max(result.memory_ms, result.compute_ms);
  result.bound = slower_limit(result.memory_ms, result.compute_ms);
  return result;
}

PassPrediction predict_pass(const Hardware& hardware, const ModelShape& model, const Pass& pass,
                            const OperatorPrecisions& precisions, const PassOptions& options) {
  check_model(model);
  check_pass(pass);
  check_range("kv_recent_window", precisions.kv_recent_window, 0, kMostTokens);
  return predict_checked_pass(hardware, model, pass, precisions, options);
}

IntensityCount count_below(const PassPrediction& prediction, double intensity) {
  IntensityCount count;
  for (const OperatorPrediction& one : prediction.operators) {
    if (one.bytes == 0) continue;
    ++count.all;
    if (one.ai < intensity) ++count.below;
  }
  return count;
}

double resident_weight_bytes(const ModelShape& model, const OperatorPrecisions& precisions) {
  const bool gpt2 = model.architecture == Architecture::kGpt2;
  const OperatorCosts costs = operator_costs(model, {}, precisions);
  double bytes = 0;
  for (const Op op : kAllOps)
    if (op != Op::kEmbedding && op != Op::kPosition) bytes += costs[index_of(op)].weight_bytes;
  // A pass looks up rows of these two tables; a tied head is the embedding.
  const auto table = [&](Op op, std::int64_t rows) {
    return matrix_bytes(precisions.at(op), static_cast<double>(rows), model.n_embd, precisions.accounting);
  };
  if (!gpt2) bytes += table(Op::kEmbedding, model.vocab_size);
  if (gpt2) bytes += table(Op::kPosition, model.block_size);
  return bytes;
}

GenerationPrediction predict_generation(const Hardware& hardware, const ModelShape& model, std::int64_t batch,
                                        std::int64_t prompt_length, std::int64_t new_tokens,
                                        const OperatorPrecisions& precisions, const PassOptions& options) {
  check_range("new_tokens", new_tokens, 1, 1 << 17);
  GenerationPrediction result;
  result.prefill_ms =
      predict_pass(hardware, model, {.batch = batch, .past = 0, .tokens = prompt_length}, precisions, options)
          .time_ms;
  for (std::int64_t i = 1; i < new_tokens; ++i) {
    const Pass pass{.batch = batch, .past = prompt_length + i - 1, .tokens = 1};
    const double step_ms = predict_checked_pass(hardware, model, pass, precisions, options).time_ms;
    if (i == 1) result.first_decode_ms = step_ms;
    result.last_decode_ms = step_ms;
    result.decode_ms += step_ms;
  }
  result.total_ms = result.prefill_ms + result.decode_ms;
  result.tokens_per_s = 1e3 * static_cast<double>(batch) * static_cast<double>(new_tokens) / result.total_ms;
  result.kv_cache_bytes = kv_cache_bytes(model, static_cast<double>(prompt_length + new_tokens - 1),
                                         static_cast<double>(batch), precisions.kv(), precisions.accounting);
  result.weight_bytes = resident_weight_bytes(model, precisions);
  result.resident_bytes = result.weight_bytes + result.kv_cache_bytes;
  result.fits_memory = !hardware.memory_gb || result.resident_bytes <= hardware.memory_gb->value * 1e9;
  return result;
}

}  // namespace kvfuse::roofline
