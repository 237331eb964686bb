// One step of training: what it needs of memory, not how to train well.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "csrc/model/gpt2.h"

namespace kvfuse {

// The model with a gradient and AdamW's two moments beside every weight: three times its size more.
class Trainer {
 public:
  // Copies the weights. Throws std::invalid_argument under c10::InferenceMode, whose tensors have no
  // gradient, and for weights that are quantised, which have none either.
  explicit Trainer(const Gpt2Weights& weights);

  // Forward, backward and an update. tokens: int64 [batch, T], T >= 2 and T - 1 <= block_size; every token
  // but the first is predicted. Returns the mean -log p in nats, before the update.
  double step(const at::Tensor& tokens, double learning_rate);

  const Gpt2& model() const { return model_; }
  // In the order of the weights; a gradient is that of the last step.
  const std::vector<at::Tensor>& parameters() const { return parameters_; }

 private:
  void update(double learning_rate);

  Gpt2 model_;
  std::vector<at::Tensor> parameters_, first_moments_, second_moments_;
  std::int64_t steps_ = 0;
};

}  // namespace kvfuse
