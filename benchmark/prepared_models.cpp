#include "benchmark/prepared_models.h"

#include <utility>

#include "csrc/model/packed_weights.h"
#include "csrc/model/prepared_weights.h"

namespace kvfuse::bench {

PreparedModels::Key PreparedModels::key_of(const Strategy& strategy) {
  return {strategy.sharing_group, strategy.q_alignment, strategy.weight_dtype};
}

PreparedModels::PreparedModels(Gpt2Weights own, const std::vector<const Strategy*>& strategies,
                               const Transforms& transforms, const at::Tensor& calibration)
    : warnings_(own.warnings) {
  std::map<Key, FittedLayers> fitted;
  for (const Strategy* strategy : strategies) {
    const Key key = key_of(*strategy);
    if (fitted.contains(key) || prepared_.contains(key)) continue;
    try {
      fitted.emplace(key, prepare_weights(own, *strategy, transforms, calibration));
    } catch (...) {
      // A fit may fail, and the other versions can still be measured. Anything else is wrong with the run.
      if (strategy->q_alignment != QAlignment::kFit) throw;
      prepared_.emplace(key, Prepared{Gpt2(Gpt2Weights()), {}, std::current_exception()});
    }
  }
  own = {};
  std::vector<Gpt2Weights*> all;
  for (auto& [key, layers] : fitted) all.push_back(&layers.weights);
  pack_weights(all);
  for (auto& [key, layers] : fitted)
    prepared_.emplace(key, Prepared{Gpt2(std::move(layers.weights)), std::move(layers.fits), {}});
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
