#include "csrc/model/prepared_weights.h"

#include <array>
#include <stdexcept>
#include <string>
#include <utility>

#include "csrc/model/layer_sharing.h"
#include "csrc/model/packed_weights.h"
#include "csrc/model/quantized_weights.h"
#include "csrc/model/transforms.h"
#include "kernels/weight_format.h"

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

// Whether rows of the weights are needed one by one. Layers that borrow need the first ones alone, which are
// whole panels as a rule.
bool needs_rows(const Gpt2Weights& own, const Strategy& strategy, const Transforms& transforms) {
  return strategy.weight_dtype != own.weight_dtype() || strategy.q_alignment == QAlignment::kFit ||
         transforms.any() || (strategy.sharing_group > 1 && own.config.n_embd % kPanelOutputs != 0);
}

}  // namespace

FittedLayers prepare_weights(const Gpt2Weights& own, const Strategy& strategy, const Transforms& transforms,
                             const at::Tensor& calibration) {
  if (own.packed && needs_rows(own, strategy, transforms)) {
    Gpt2Weights rows = own;
    unpack_weights(rows);
    FittedLayers prepared = prepare_weights(rows, strategy, transforms, calibration);
    pack_weights(std::array{&prepared.weights});
    return prepared;
  }
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
