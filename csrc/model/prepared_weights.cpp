#include "csrc/model/prepared_weights.h"

#include <utility>

#include "csrc/model/layer_sharing.h"
#include "csrc/model/transforms.h"

namespace kvfuse {

FittedLayers prepare_weights(const Gpt2Weights& own, const Strategy& strategy, const Transforms& transforms,
                             const at::Tensor& calibration) {
  FittedLayers shared = strategy.q_alignment == QAlignment::kFit
                            ? fit_shared_layers(own, strategy, calibration)
                            : FittedLayers{with_shared_layers(own, strategy), {}};
  shared.weights = fold_transforms(std::move(shared.weights), transforms);
  return shared;
}

}  // namespace kvfuse
