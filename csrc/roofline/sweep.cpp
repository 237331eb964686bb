#include "csrc/roofline/sweep.h"

#include <stdexcept>

#include "csrc/roofline/check.h"
#include "csrc/roofline/strategies.h"

namespace kvfuse::roofline {
namespace {

// The product of the sizes, checked.
std::size_t points_of(std::initializer_list<std::pair<const char*, std::size_t>> lists) {
  double points = 1;
  for (const auto& [name, size] : lists) {
    if (size == 0)
      throw std::invalid_argument("roofline: sweep: expected at least one of " + std::string(name) +
                                  ", got none");
    points *= static_cast<double>(size);
  }
  if (points > static_cast<double>(kMostSweepPoints))
    throw std::invalid_argument("roofline: sweep: expected at most " + std::to_string(kMostSweepPoints) +
                                " points, got " + number_text(points));
  return static_cast<std::size_t>(points);
}

// What all contexts and batches of one model under one strategy share.
struct Series {
  const Hardware& hardware;
  const ModelShape& model;
  const MixedPrecision& strategy;
  double weight_bytes;
};

ModelPoint point_of(const Series& series, const Pass& pass, std::int64_t context,
                    const PassOptions& options) {
  const PassPrediction prediction =
      predict_checked_pass(series.hardware, series.model, pass, series.strategy.precisions, options);
  const double kv_bytes = kv_cache_bytes(series.model, static_cast<double>(context),
                                         static_cast<double>(pass.batch), series.strategy.precisions.kv());
  const auto& memory = series.hardware.memory_gb;
  return {.hardware = series.hardware.name,
          .model = series.model.name,
          .strategy = std::string(series.strategy.name),
          .batch = pass.batch,
          .context = context,
          .time_ms = prediction.time_ms,
          .tokens_per_s =
              1e3 * static_cast<double>(pass.batch) * static_cast<double>(pass.tokens) / prediction.time_ms,
          .flops = prediction.flops,
          .bytes = prediction.bytes,
          .ai = prediction.ai,
          .bound = prediction.bound,
          .weight_bytes = series.weight_bytes,
          .kv_cache_bytes = kv_bytes,
          .fits_memory = !memory || series.weight_bytes + kv_bytes <= memory->value * 1e9};
}

}  // namespace

std::vector<GemmPoint> sweep_gemm(const std::vector<Hardware>& machines, const std::vector<GemmShape>& shapes,
                                  const std::vector<Precision>& precisions, const GemmOptions& options) {
  std::vector<GemmPoint> points;
  points.reserve(points_of(
      {{"hardware", machines.size()}, {"shapes", shapes.size()}, {"precisions", precisions.size()}}));
  for (const Hardware& hardware : machines)
    for (const GemmShape& shape : shapes)
      for (const Precision precision : precisions)
        points.push_back({hardware.name, predict_gemm(hardware, shape, precision, options)});
  return points;
}

std::vector<ModelPoint> sweep_models(const ModelSweep& sweep) {
  std::vector<ModelPoint> points;
  points.reserve(points_of({{"hardware", sweep.machines.size()},
                            {"models", sweep.models.size()},
                            {"strategies", sweep.strategies.size()},
                            {"batches", sweep.batches.size()},
                            {"contexts", sweep.contexts.size()}}));
  for (const ModelShape& model : sweep.models) check_model(model);
  for (const std::int64_t batch : sweep.batches) check_range("batch", batch, 1, kMostBatch);
  for (const std::int64_t context : sweep.contexts) check_range("context", context, 1, kMostTokens);
  for (const Hardware& hardware : sweep.machines)
    for (const ModelShape& model : sweep.models)
      for (const std::string& name : sweep.strategies) {
        const MixedPrecision& strategy = find_mixed_precision(name);
        const Series series{hardware, model, strategy, resident_weight_bytes(model, strategy.precisions)};
        for (const std::int64_t batch : sweep.batches)
          for (const std::int64_t context : sweep.contexts) {
            const Pass pass = sweep.prefill ? Pass{.batch = batch, .past = 0, .tokens = context}
                                            : Pass{.batch = batch, .past = context - 1, .tokens = 1};
            points.push_back(point_of(series, pass, context, sweep.options));
          }
      }
  return points;
}

}  // namespace kvfuse::roofline
