// The operators of linear layers on the CPU.
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "csrc/ops/check.h"
#include "csrc/ops/dtype.h"
#include "csrc/ops/linear_check.h"
#include "csrc/ops/panel_matrix.h"
#include "kernels/cpu/isa.h"
#include "kernels/weight_quant.h"

namespace kvfuse::ops {
namespace {

// Whether PyTorch's products are faster (docs/decisions.md).
bool library_wins(at::ScalarType dtype, std::int64_t rows) {
  constexpr std::int64_t kKernelRows = 32;
  return rows > kKernelRows && dtype == at::kBFloat16 && cpu::multiplies_bfloat16();
}

at::Tensor value_or_none(const std::optional<at::Tensor>& tensor) {
  return is_given(tensor) ? *tensor : at::Tensor();
}

const void* pointer_of(const std::optional<at::Tensor>& tensor) {
  return is_given(tensor) ? tensor->const_data_ptr() : nullptr;
}

at::Tensor normalised(const LinearArguments& args) {
  if (!is_given(args.norm_weight)) return args.x;
  const at::Tensor bias = value_or_none(args.norm_bias);
  return at::layer_norm(args.x.to(at::kFloat), {args.x.size(-1)}, args.norm_weight->to(at::kFloat),
                        bias.defined() ? bias.to(at::kFloat) : bias, args.norm_epsilon)
      .to(args.x.scalar_type());
}

at::Tensor by_aten(const LinearArguments& args) {
  const at::Tensor out = at::linear(normalised(args), args.weight, value_or_none(args.bias));
  if (args.gelu == "none") return out;
  return at::gelu(out, args.gelu == "tanh" ? "tanh" : "none");
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& weight_scale, const std::optional<at::Tensor>& norm_weight,
                  const std::optional<at::Tensor>& norm_bias, double norm_epsilon, c10::string_view gelu,
                  bool fine_activations, bool packed) {
  const LinearArguments args{x,         weight,       bias, weight_scale, norm_weight,
                             norm_bias, norm_epsilon, gelu, packed};
  check_linear(args);
  const WeightFormat format = weight_format_of(weight, packed);
  const std::int64_t in = x.size(-1), rows = x.numel() / in;
  if (format == WeightFormat::kFloat && library_wins(x.scalar_type(), rows)) return by_aten(args);
  at::Tensor out = empty_linear_result(x, weight);
  if (out.numel() == 0) return out;
  // The kernel normalises rows of float32, as the residual stream of a model is.
  const at::Tensor input = (is_given(norm_weight) ? x.to(at::kFloat) : x).contiguous();
  const DType dtype = to_dtype(x.scalar_type()).value();
  cpu::linear({.x = input.const_data_ptr(),
               .weight = weight.const_data_ptr(),
               .weight_scale = pointer_of(weight_scale),
               .bias = pointer_of(bias),
               .norm_weight = pointer_of(norm_weight),
               .norm_bias = pointer_of(norm_bias),
               .out = out.mutable_data_ptr(),
               .dtype = dtype,
               .out_dtype = dtype,
               .weight_format = format,
               .epilogue = epilogue_of(gelu),
               .fine_activations = fine_activations,
               .norm_epsilon = static_cast<float>(norm_epsilon),
               .rows = rows,
               .in = in,
               .out_size = weight.size(0)});
  return out;
}

at::Tensor pack_weight(const at::Tensor& weight) {
  check_pack_weight(weight);
  at::Tensor packed = weight.clone(at::MemoryFormat::Contiguous);
  cpu::pack_weight(packed.mutable_data_ptr(), panel_matrix(packed));
  return packed;
}

std::tuple<at::Tensor, at::Tensor> quantize_weight(const at::Tensor& weight, c10::string_view format) {
  check_quantize_weight(weight, format);
  const auto [codes, scale] = empty_quantized_weight(weight, format);
  if (weight.size(0) == 0) return {codes, scale};
  const at::Tensor values = weight.to(at::kFloat).contiguous();
  const std::optional<std::int64_t> bad_row = cpu::quantize_weight({.weight = values.const_data_ptr<float>(),
                                                                    .format = weight_format_of(codes),
                                                                    .codes = codes.mutable_data_ptr(),
                                                                    .scale = scale.mutable_data_ptr(),
                                                                    .out_size = weight.size(0),
                                                                    .in = weight.size(1)});
  TORCH_CHECK_VALUE(!bad_row, kQuantizeWeight,
                    ": expected finite values that scales can hold, got NaN, an infinity or (int4) more than "
                    "680,000 in row ",
                    bad_row.value_or(0));
  return {codes, scale};
}

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, CPU, m) {
  m.impl("linear", &linear);
  m.impl("pack_weight", &pack_weight);
  m.impl("quantize_weight", &quantize_weight);
}

}  // namespace kvfuse::ops
