#include "benchmark/prepared_models.h"

#include <utility>

#include "csrc/model/prepared_weights.h"

namespace kvfuse::bench {

PreparedModels::Key PreparedModels::key_of(const Strategy& strategy) {
  return {strategy.sharing_group, strategy.q_alignment, strategy.weight_dtype};
}

PreparedModels::PreparedModels(const Gpt2Weights& own, const std::vector<const Strategy*>& strategies,
                               const Transforms& transforms, const at::Tensor& calibration)
    : warnings_(own.warnings) {
  for (const Strategy* strategy : strategies) {
    if (prepared_.contains(key_of(*strategy))) continue;
    Prepared prepared{Gpt2(Gpt2Weights()), {}, {}};
    try {
      FittedLayers fitted = prepare_weights(own, *strategy, transforms, calibration);
      prepared = {Gpt2(std::move(fitted.weights)), std::move(fitted.fits), {}};
    } catch (...) {
      // A fit may fail, and the other versions can still be measured. Anything else is wrong with the run.
      if (strategy->q_alignment != QAlignment::kFit) throw;
      prepared.error = std::current_exception();
    }
    prepared_.emplace(key_of(*strategy), std::move(prepared));
  }
}

const Gpt2& PreparedModels::model(const Strategy& strategy) const {
  const Prepared& prepared = prepared_.at(key_of(strategy));
  if (prepared.error) std::rethrow_exception(prepared.error);
  return prepared.model;
}

std::span<const LayerFit> PreparedModels::fits(const Strategy& strategy) const {
  return prepared_.at(key_of(strategy)).fits;
}

}  // namespace kvfuse::bench
