// A step of training, judged by differences of the loss and by AdamW written out.
#include "csrc/model/training.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/log_softmax.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "csrc/model/layer_sharing.h"
#include "csrc/versions/registry.h"
#include "tests/cpp/error_of.h"

namespace kvfuse {
namespace {

constexpr ModelConfig kModel = {.n_layer = 3, .n_head = 2, .n_embd = 16, .block_size = 12, .vocab_size = 29};

at::Tensor tokens() { return random_token_ids({2, 13}, kModel.vocab_size, 3); }

Gpt2Weights weights_of(const char* version) {
  return with_shared_layers(random_weights(kModel, at::kDouble, 5, 0.3), find_version(version));
}

double loss_of(const Gpt2& model) {
  const c10::InferenceMode inference;
  const at::Tensor logits = model.forward(tokens().narrow(1, 0, 12), nullptr, LogitsOf::kEveryToken);
  const at::Tensor log_p = at::log_softmax(logits, -1);
  return -log_p.gather(2, tokens().narrow(1, 1, 12).unsqueeze(2)).mean().item<double>();
}

class Training : public testing::TestWithParam<const char*> {};

TEST_P(Training, GradientsAreThoseOfTheLoss) {
  Trainer trainer(weights_of(GetParam()));
  const double loss = trainer.step(tokens(), 0.0);
  EXPECT_NEAR(loss, loss_of(trainer.model()), 1e-12);
  constexpr double kStep = 1e-5;
  for (const at::Tensor& parameter : trainer.parameters()) {
    const std::int64_t middle = parameter.numel() / 2;
    double* value = parameter.mutable_data_ptr<double>() + middle;
    const double kept = *value;
    *value = kept + kStep;
    const double above = loss_of(trainer.model());
    *value = kept - kStep;
    const double below = loss_of(trainer.model());
    *value = kept;
    EXPECT_NEAR(parameter.grad().data_ptr<double>()[middle], (above - below) / (2 * kStep), 1e-8)
        << parameter.sizes();
  }
}

INSTANTIATE_TEST_SUITE_P(Versions, Training, testing::Values("v0", "v3"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Trainer, UpdatesAsAdamW) {
  const Gpt2Weights weights = weights_of("v0");
  Trainer trainer(weights);
  const at::Tensor& parameter = trainer.parameters()[0];  // decays
  double value = weights.token_embedding[1][2].item<double>(), m = 0, v = 0;
  for (int t = 1; t <= 3; ++t) {
    trainer.step(tokens(), 0.01);
    const double g = parameter.grad()[1][2].item<double>();
    m = 0.9 * m + 0.1 * g;
    v = 0.95 * v + 0.05 * g * g;
    value = value * (1 - 0.01 * 0.1) -
            0.01 * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.95, t))) + 1e-8);
    EXPECT_NEAR(parameter[1][2].item<double>(), value, 1e-12);
  }
}

TEST(Trainer, LearnsAndLeavesTheWeightsItWasGivenAlone) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Gpt2Weights weights = random_weights(kModel, dtype, 5);
    const at::Tensor before = weights.token_embedding.clone();
    Trainer trainer(weights);
    const double first = trainer.step(tokens(), 0.01);
    double last = first;
    for (int i = 0; i < 40; ++i) last = trainer.step(tokens(), 0.01);
    EXPECT_LT(last, first / 2) << dtype;
    EXPECT_TRUE(at::equal(weights.token_embedding, before));
    EXPECT_FALSE(weights.token_embedding.requires_grad());
  }
}

TEST(Trainer, RefusesInferenceMode) {
  const c10::InferenceMode inference;
  EXPECT_EQ(error_of([] { Trainer trainer(weights_of("v0")); }),
            "Trainer: expected no inference mode, got it");
}

}  // namespace
}  // namespace kvfuse
