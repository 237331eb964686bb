#include "csrc/ops/linear_check.h"

#include <ATen/ops/empty.h>

#include <array>
#include <cmath>

#include "csrc/ops/check_rules.h"
#include "csrc/ops/dtype.h"

namespace kvfuse::ops {
namespace {

// With more, int8 codes would leave the rows of x few levels (activation_levels).
constexpr std::int64_t kMostInputsOfCodes = 1 << 20;

c10::SymInt in_size(const at::Tensor& x) { return x.sym_size(x.dim() - 1); }

void check_groups(const char* op, const NamedTensor& arg) {
  TORCH_CHECK_VALUE(is_true((in_size(arg.tensor) % kInt4Group).sym_eq(0)), op, ": expected ", arg.name,
                    " with a last dimension that is a multiple of ", kInt4Group,
                    ", the inputs that share a scale of int4 codes, got ", in_size(arg.tensor));
}

void check_quads(const char* op, const NamedTensor& arg) {
  TORCH_CHECK_VALUE(is_true((in_size(arg.tensor) % kQuadInputs).sym_eq(0)), op, ": expected ", arg.name,
                    " with a last dimension that is a multiple of ", kQuadInputs,
                    ", the inputs of packed int8 codes that stay together, got ", in_size(arg.tensor));
}

// [out] of a row of the weight each, or of as many as there are groups in it.
void check_weight(const LinearArguments& args) {
  const NamedTensor x{"x", args.x}, weight{"weight", args.weight};
  check_device(kLinear, x, weight);
  const at::ScalarType dtype = args.weight.scalar_type();
  TORCH_CHECK_TYPE(dtype == args.x.scalar_type() || dtype == at::kChar || dtype == at::kByte, kLinear,
                   ": expected weight of dtype ", name_of(args.x.scalar_type()),
                   " (that of x), int8 or uint8 (codes of quantize_weight), got ", name_of(dtype));
  check_dim(kLinear, weight, 2, "[out, in], or of int4 codes [out, in / 2]");
  const WeightFormat format = weight_format_of(args.weight);
  if (args.packed && format == WeightFormat::kInt8Rows) check_quads(kLinear, x);
  const bool grouped = format == WeightFormat::kInt4Groups;
  if (grouped) check_groups(kLinear, x);
  const c10::SymInt out = args.weight.sym_size(0), in = in_size(args.x);
  check_shape(kLinear, weight, std::array{out, grouped ? in / 2 : in},
              grouped ? "out, half the inputs of x" : "out, the inputs of x");
  check_contiguous(kLinear, weight);
  TORCH_CHECK_VALUE(!has_codes(format) || is_true(in.sym_le(kMostInputsOfCodes)), kLinear,
                    ": expected x with at most ", kMostInputsOfCodes, " inputs beside codes, got ", in);
  const bool given = is_given(args.weight_scale);
  TORCH_CHECK_VALUE(
      given == has_codes(format), kLinear, ": expected ",
      given ? "no weight_scale with a weight of dtype " : "weight_scale with a weight of dtype ",
      name_of(dtype), ", got ", given ? "a tensor" : "None");
  if (!given) return;
  const NamedTensor scale{"weight_scale", *args.weight_scale};
  check_device(kLinear, x, scale);
  check_dtype(kLinear, scale, grouped ? at::kHalf : at::kFloat, "");
  if (grouped && args.packed)
    check_shape(kLinear, scale, std::array{out * (in / kInt4Group)},
                "out times groups of 32 inputs, packed and flattened");
  else if (grouped)
    check_shape(kLinear, scale, std::array{out, in / kInt4Group}, "out, groups of 32 inputs");
  else
    check_shape(kLinear, scale, std::array{out}, "out");
  check_contiguous(kLinear, scale);
}

void check_vector(const LinearArguments& args, const char* name, const std::optional<at::Tensor>& vector,
                  const c10::SymInt& size, const char* shape) {
  if (!is_given(vector)) return;
  const NamedTensor arg{name, *vector};
  check_device(kLinear, {"x", args.x}, arg);
  check_dtype(kLinear, arg, args.x.scalar_type(), " (that of x)");
  check_shape(kLinear, arg, std::array{size}, shape);
  check_contiguous(kLinear, arg);
}

}  // namespace

void check_linear(const LinearArguments& args) {
  const NamedTensor x{"x", args.x};
  check_given(kLinear, x);
  check_float_dtype(kLinear, "x", args.x.scalar_type());
  TORCH_CHECK_VALUE(args.x.dim() >= 1 && is_true(in_size(args.x).sym_ge(1)), kLinear,
                    ": expected x of shape [..., in] with at least one input, got ", args.x.sym_sizes());
  check_weight(args);
  check_vector(args, "bias", args.bias, args.weight.sym_size(0), "out");
  check_vector(args, "norm_weight", args.norm_weight, in_size(args.x), "in");
  check_vector(args, "norm_bias", args.norm_bias, in_size(args.x), "in");
  TORCH_CHECK_VALUE(is_given(args.norm_weight) || !is_given(args.norm_bias), kLinear,
                    ": expected no norm_bias without a norm_weight, got a tensor");
  const auto epsilon = static_cast<float>(args.norm_epsilon);
  TORCH_CHECK_VALUE(std::isfinite(epsilon) && epsilon >= 0.0F, kLinear,
                    ": expected a finite norm_epsilon >= 0, got ", args.norm_epsilon);
  TORCH_CHECK_VALUE(args.gelu == "none" || args.gelu == "tanh" || args.gelu == "exact", kLinear,
                    ": expected gelu to be \"none\", \"tanh\" or \"exact\", got \"", args.gelu, "\"");
}

void check_pack_weight(const at::Tensor& weight) {
  const NamedTensor arg{"weight", weight};
  check_given(kPackWeight, arg);
  const at::ScalarType dtype = weight.scalar_type();
  TORCH_CHECK_TYPE(
      to_dtype(dtype).has_value() || dtype == at::kByte, kPackWeight,
      ": expected weight of dtype float32, bfloat16, float16, int8 or uint8 (codes of quantize_weight), got ",
      name_of(dtype));
  check_dim(kPackWeight, arg, 2, "[out, in], or of int4 codes [out, in / 2]");
  if (dtype == at::kChar) check_quads(kPackWeight, arg);
  if (dtype == at::kByte)
    TORCH_CHECK_VALUE(is_true((in_size(weight) % kInt4GroupBytes).sym_eq(0)), kPackWeight,
                      ": expected weight with a last dimension that is a multiple of ", kInt4GroupBytes,
                      ", the bytes of a group of int4 codes, got ", in_size(weight));
}

void check_quantize_weight(const at::Tensor& weight, std::string_view format) {
  const NamedTensor arg{"weight", weight};
  check_given(kQuantizeWeight, arg);
  check_float_dtype(kQuantizeWeight, "weight", weight.scalar_type());
  check_dim(kQuantizeWeight, arg, 2, "[out, in]");
  TORCH_CHECK_VALUE(is_true(weight.sym_size(1).sym_ge(1)), kQuantizeWeight,
                    ": expected weight with at least one input, got shape ", weight.sym_sizes());
  TORCH_CHECK_VALUE(format == "int8" || format == "int4", kQuantizeWeight,
                    ": expected format to be \"int8\" or \"int4\", got \"", format, "\"");
  if (format == "int4") check_groups(kQuantizeWeight, arg);
}

WeightFormat weight_format_of(const at::Tensor& weight, bool packed) {
  if (weight.scalar_type() == at::kByte)
    return packed ? WeightFormat::kInt4Panels : WeightFormat::kInt4Groups;
  if (weight.scalar_type() == at::kChar) return packed ? WeightFormat::kInt8Panels : WeightFormat::kInt8Rows;
  return packed ? WeightFormat::kFloatPanels : WeightFormat::kFloat;
}

Epilogue epilogue_of(std::string_view gelu) {
  if (gelu == "none") return Epilogue::kStore;
  return gelu == "tanh" ? Epilogue::kGeluTanh : Epilogue::kGeluExact;
}

at::Tensor empty_linear_result(const at::Tensor& x, const at::Tensor& weight) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = weight.sym_size(0);
  return at::empty_symint(sizes, x.options());
}

std::tuple<at::Tensor, at::Tensor> empty_quantized_weight(const at::Tensor& weight, std::string_view format) {
  const c10::SymInt out = weight.sym_size(0), in = weight.sym_size(1);
  if (format == "int8")
    return {at::empty_symint(std::array{out, in}, weight.options().dtype(at::kChar)),
            at::empty_symint(std::array{out}, weight.options().dtype(at::kFloat))};
  return {at::empty_symint(std::array{out, in / 2}, weight.options().dtype(at::kByte)),
          at::empty_symint(std::array{out, in / kInt4Group}, weight.options().dtype(at::kHalf))};
}

}  // namespace kvfuse::ops
