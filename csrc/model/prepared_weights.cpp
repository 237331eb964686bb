#include "csrc/model/prepared_weights.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "csrc/model/layer_sharing.h"
#include "csrc/model/quantized_weights.h"
#include "csrc/model/transforms.h"

namespace kvfuse {

namespace {

// Fits and transforms work on values, and what is rounded once is not rounded again.
void check_quantized(const Gpt2Weights& own, const Strategy& strategy, const Transforms& transforms) {
  const auto expect = [&](bool holds, const std::string& expected) {
    if (!holds)
      throw std::invalid_argument("version " + std::string(strategy.name) + ": expected " + expected +
                                  ", got weights that are " + weight_dtype_name(own.weight_dtype()) +
                                  " already");
  };
  const bool floats = strategy.weight_dtype == WeightDtype::kModel;
  expect(own.weight_dtype() == strategy.weight_dtype,
         floats ? "weights in floating point"
                : std::string("weights in floating point or ") + weight_dtype_name(strategy.weight_dtype));
  expect(strategy.q_alignment != QAlignment::kFit, "weights in floating point, to fit layers");
  expect(!transforms.any(), "weights in floating point, to transform them");
}

}  // namespace

FittedLayers prepare_weights(const Gpt2Weights& own, const Strategy& strategy, const Transforms& transforms,
                             const at::Tensor& calibration) {
  const bool stored_quantized = own.weight_dtype() != WeightDtype::kModel;
  if (stored_quantized) check_quantized(own, strategy, transforms);
  FittedLayers shared = strategy.q_alignment == QAlignment::kFit
                            ? fit_shared_layers(own, strategy, calibration)
                            : FittedLayers{with_shared_layers(own, strategy), {}};
  shared.weights = fold_transforms(std::move(shared.weights), transforms);
  if (strategy.weight_dtype != WeightDtype::kModel && !stored_quantized)
    shared.weights = with_quantized_linears(std::move(shared.weights), strategy.weight_dtype);
  return shared;
}

}  // namespace kvfuse
