#include "csrc/model/training.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/InferenceMode.h>

#include <cmath>
#include <stdexcept>

#include "csrc/model/packed_weights.h"

namespace kvfuse {
namespace {

// AdamW's constants as nanoGPT trains GPT-2 with them (its train.py).
constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.95;
constexpr double kEpsilon = 1e-8;
constexpr double kWeightDecay = 0.1;

Gpt2Weights with_gradients(Gpt2Weights weights) {
  if (c10::InferenceMode::is_enabled())
    throw std::invalid_argument("Trainer: expected no inference mode, got it");
  if (weights.weight_dtype() != WeightDtype::kModel)
    throw std::invalid_argument(std::string("Trainer: expected weights in floating point, got ") +
                                weight_dtype_name(weights.weight_dtype()));
  if (weights.packed) unpack_weights(weights);
  for (const NamedTensor& named : weights.tensors())
    *named.tensor = named.tensor->detach().clone().requires_grad_();
  return weights;
}

}  // namespace

Trainer::Trainer(const Gpt2Weights& weights) : model_(with_gradients(weights)) {
  Gpt2Weights views = model_.weights();
  for (const NamedTensor& named : views.tensors()) {
    parameters_.push_back(*named.tensor);
    first_moments_.push_back(at::zeros_like(*named.tensor));
    second_moments_.push_back(at::zeros_like(*named.tensor));
  }
}

double Trainer::step(const at::Tensor& tokens, double learning_rate) {
  const at::AutoGradMode recorded(true);
  const std::int64_t inputs = tokens.size(1) - 1;
  for (at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
  const at::Tensor logits = model_.forward(tokens.narrow(1, 0, inputs), nullptr, LogitsOf::kEveryToken);
  const at::Tensor loss =
      at::cross_entropy_loss(logits.flatten(0, 1), tokens.narrow(1, 1, inputs).reshape({-1}));
  loss.backward();
  update(learning_rate);
  return loss.item<double>();
}

void Trainer::update(double learning_rate) {
  const at::AutoGradMode not_recorded(false);
  ++steps_;
  const double bias_1 = 1 - std::pow(kBeta1, static_cast<double>(steps_));
  const double bias_2 = 1 - std::pow(kBeta2, static_cast<double>(steps_));
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor& parameter = parameters_[i];
    const at::Tensor& gradient = parameter.grad();
    if (!gradient.defined()) continue;
    // Norms and biases do not decay.
    if (parameter.dim() > 1) parameter.mul_(1 - learning_rate * kWeightDecay);
    first_moments_[i].mul_(kBeta1).add_(gradient, 1 - kBeta1);
    second_moments_[i].mul_(kBeta2).addcmul_(gradient, gradient, 1 - kBeta2);
    const at::Tensor deviation = second_moments_[i].sqrt().div_(std::sqrt(bias_2)).add_(kEpsilon);
    parameter.addcdiv_(first_moments_[i], deviation, -learning_rate / bias_1);
  }
}

}  // namespace kvfuse
