// A model behind the class _C.Gpt2.
#pragma once

#include <vector>

#include "csrc/model/gpt2.h"
#include "csrc/model/layer_fit.h"

namespace kvfuse {

struct PreparedModel {
  Gpt2 model;
  Strategy strategy;
  std::vector<LayerFit> fits;
};

}  // namespace kvfuse
