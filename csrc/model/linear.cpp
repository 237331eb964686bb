#include "csrc/model/linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>

#include <optional>
#include <string_view>

#include "csrc/ops/dtype.h"
#include "csrc/ops/ops.h"

namespace kvfuse {
namespace {

std::optional<at::Tensor> given(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

// The fused operator is the CPU's, has no gradient and no double.
bool suits_fused(const at::Tensor& x, const LinearWeight& weight) {
  return weight.scale.defined() || (x.is_cpu() && ops::to_dtype(x.scalar_type()).has_value() &&
                                    !(at::GradMode::is_enabled() && weight.values.requires_grad()));
}

at::Tensor fused(const at::Tensor& x, const LinearWeight& weight, const at::Tensor& bias,
                 c10::string_view gelu) {
  const bool flat = weight.packed && weight.values.scalar_type() == at::kByte;
  const at::Tensor scale = flat ? weight.scale.flatten() : weight.scale;
  return ops::linear(x, weight.values, given(bias), given(scale), /*norm_weight=*/{}, /*norm_bias=*/{},
                     /*norm_epsilon=*/0, gelu, weight.fine_activations, weight.packed);
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const LinearWeight& weight, const at::Tensor& bias) {
  return suits_fused(x, weight) ? fused(x, weight, bias, "none") : at::linear(x, weight.values, bias);
}

at::Tensor linear_gelu(const at::Tensor& x, const LinearWeight& weight, const at::Tensor& bias, Gelu gelu) {
  const bool tanh = gelu == Gelu::kTanh;
  if (suits_fused(x, weight)) return fused(x, weight, bias, tanh ? "tanh" : "exact");
  return at::gelu(at::linear(x, weight.values, bias), tanh ? "tanh" : "none");
}

}  // namespace kvfuse
