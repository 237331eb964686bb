// What the operators of linear layers take, what they say of all else, and what they return.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "kernels/linear.h"

namespace kvfuse::ops {

// One call's arguments; refers to the caller's tensors.
struct LinearArguments {
  const at::Tensor& x;
  const at::Tensor& weight;
  const std::optional<at::Tensor>& bias;
  const std::optional<at::Tensor>& weight_scale;
  const std::optional<at::Tensor>& norm_weight;
  const std::optional<at::Tensor>& norm_bias;
  double norm_epsilon;
  std::string_view gelu;
  bool packed;
};

// Shapes, dtypes, devices and strides, as in check.h.
void check_linear(const LinearArguments& args);
void check_pack_weight(const at::Tensor& weight);
void check_quantize_weight(const at::Tensor& weight, std::string_view format);

// Of checked arguments.
WeightFormat weight_format_of(const at::Tensor& weight, bool packed = false);  // by its dtype
Epilogue epilogue_of(std::string_view gelu);

at::Tensor empty_linear_result(const at::Tensor& x, const at::Tensor& weight);
std::tuple<at::Tensor, at::Tensor> empty_quantized_weight(const at::Tensor& weight, std::string_view format);

}  // namespace kvfuse::ops
