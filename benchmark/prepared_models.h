// The models of a run: one for each way in which its versions change the weights.
#pragma once

#include <exception>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "csrc/model/gpt2.h"
#include "csrc/model/layer_fit.h"

namespace kvfuse::bench {

class PreparedModels {
 public:
  // Prepares `own`, whose memory nobody else may use, for each of the strategies
  // (csrc/model/prepared_weights), and packs what is left in floating point (csrc/model/packed_weights): what
  // no version runs is not held. Throws what that threw, except for strategies that fit layers.
  PreparedModels(Gpt2Weights own, const std::vector<const Strategy*>& strategies,
                 const Transforms& transforms, const at::Tensor& calibration);

  // Shares the memory of all weights that neither strategy nor transforms change. Throws what fitting its
  // layers threw.
  const Gpt2& model(const Strategy& strategy) const;
  // Nothing unless the strategy fits layers and could.
  std::span<const LayerFit> fits(const Strategy& strategy) const;
  // What is odd about the file of weights, a line each.
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  // What of a strategy changes the weights.
  using Key = std::tuple<int, QAlignment, WeightDtype>;
  static Key key_of(const Strategy& strategy);

  struct Prepared {
    Gpt2 model;
    std::vector<LayerFit> fits;
    std::exception_ptr error;
  };
  std::map<Key, Prepared> prepared_;
  std::vector<std::string> warnings_;
};

}  // namespace kvfuse::bench
