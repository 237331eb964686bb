#include "csrc/model/linear.h"

#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>

#include <optional>
#include <string_view>

#include "csrc/ops/ops.h"

namespace kvfuse {
namespace {

std::optional<at::Tensor> given(const at::Tensor& bias) {
  return bias.defined() ? std::optional(bias) : std::nullopt;
}

std::string_view name_of(Gelu gelu) { return gelu == Gelu::kTanh ? "tanh" : "none"; }

// PyTorch's oneDNN product with an elementwise function fused behind it. at::linear sends one-row products to
// MKL, which reads 13 of 33 GB/s on an AMD machine where oneDNN reads 25 (docs/decisions.md); the weight
// needs no repacking.
at::Tensor onednn_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         std::string_view function, std::optional<std::string_view> algorithm) {
  using Scalars = c10::List<std::optional<at::Scalar>>;
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                               std::string_view, Scalars, std::optional<std::string_view>);
  static const auto product =
      c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Signature>();
  return product.call(x, weight, given(bias), function, Scalars(), algorithm);
}

// The fused product has no gradient.
bool suits_onednn(const at::Tensor& x, const at::Tensor& weight) {
  return x.is_cpu() && x.scalar_type() == at::kFloat &&
         !(at::GradMode::is_enabled() && weight.requires_grad());
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const LinearWeight& weight, const at::Tensor& bias) {
  if (weight.scale.defined()) return ops::linear(x, weight.values, given(bias), weight.scale);
  if (suits_onednn(x, weight.values)) return onednn_linear(x, weight.values, bias, "none", "");
  return at::linear(x, weight.values, bias);
}

at::Tensor linear_gelu(const at::Tensor& x, const LinearWeight& weight, const at::Tensor& bias, Gelu gelu) {
  if (weight.scale.defined())
    return ops::linear(x, weight.values, given(bias), weight.scale, /*norm_weight=*/{}, /*norm_bias=*/{},
                       /*norm_epsilon=*/0, gelu == Gelu::kTanh ? "tanh" : "exact");
  if (suits_onednn(x, weight.values)) return onednn_linear(x, weight.values, bias, "gelu", name_of(gelu));
  return at::gelu(at::linear(x, weight.values, bias), name_of(gelu));
}

}  // namespace kvfuse
