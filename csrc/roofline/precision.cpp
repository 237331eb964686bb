#include "csrc/roofline/precision.h"

#include <utility>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

// INT8 has one float32 scale a row, as the KV cache of this project (a row there: one head of one token).
// INT4 has a float16 scale for 128 values, the group size of GPTQ and AWQ checkpoints. NVFP4 has an FP8 scale
// for 16 values. Losses are those of the published format table; INT8 is not in it.
constexpr std::array<PrecisionInfo, kAllPrecisions.size()> kInfos = {{
    {Precision::kFp32, "fp32", "IEEE 754 single", 32, 0, 0, QuotedLoss{0, 0}},
    {Precision::kFp16, "fp16", "IEEE 754 half: the baseline", 16, 0, 0, QuotedLoss{0, 0}},
    {Precision::kBf16, "bf16", "bfloat16: the range of fp32 with 8 bits of precision", 16, 0, 0,
     QuotedLoss{0, 0}},
    {Precision::kFp8, "fp8", "FP8 E4M3 with one scale a tensor", 8, 0, 0, QuotedLoss{0, 1}},
    {Precision::kInt8, "int8", "symmetric INT8, one float32 scale a row", 8, kWholeRow, 32, std::nullopt},
    {Precision::kInt4, "int4", "symmetric INT4, a float16 scale for 128 values", 4, 128, 16,
     QuotedLoss{2, 5}},
    {Precision::kNvfp4, "nvfp4", "E2M1 values, an FP8 scale for 16 of them and one scale a tensor", 4, 16, 8,
     QuotedLoss{0, 1}},
}};

constexpr std::array<std::pair<std::string_view, Precision>, 14> kOtherNames = {{
    {"float32", Precision::kFp32},
    {"float", Precision::kFp32},
    {"float16", Precision::kFp16},
    {"half", Precision::kFp16},
    {"bfloat16", Precision::kBf16},
    {"fp8_e4m3", Precision::kFp8},
    {"e4m3", Precision::kFp8},
    {"float8_e4m3fn", Precision::kFp8},
    {"i8", Precision::kInt8},
    {"q8", Precision::kInt8},
    {"i4", Precision::kInt4},
    {"q4", Precision::kInt4},
    {"fp4", Precision::kNvfp4},
    {"nv_fp4", Precision::kNvfp4},
}};

}  // namespace

const PrecisionInfo& precision_info(Precision precision) {
  return kInfos[static_cast<std::size_t>(precision)];
}

std::string_view precision_name(Precision precision) { return precision_info(precision).name; }

std::vector<std::string> precision_names() {
  std::vector<std::string> names;
  for (const PrecisionInfo& info : kInfos) names.emplace_back(info.name);
  return names;
}

Precision parse_precision(std::string_view name) {
  const std::string wanted = normal_name(name);
  for (const PrecisionInfo& info : kInfos)
    if (info.name == wanted) return info.precision;
  for (const auto& [other, precision] : kOtherNames)
    if (other == wanted) return precision;
  unknown_name("precision", name, precision_names());
}

double matrix_bytes(Precision precision, double rows, std::int64_t columns, Accounting accounting) {
  const PrecisionInfo& info = precision_info(precision);
  const double payload = rows * static_cast<double>(columns) * info.payload_bits / 8;
  if (accounting == Accounting::kPayloadOnly || info.block == 0 || columns == 0) return payload;
  const std::int64_t blocks = info.block == kWholeRow ? 1 : (columns + info.block - 1) / info.block;
  return payload + rows * static_cast<double>(blocks) * info.scale_bits / 8;
}

Precision activation_precision(Precision weights) {
  const bool wide = weights == Precision::kFp32 || weights == Precision::kBf16;
  return wide ? weights : Precision::kFp16;
}

}  // namespace kvfuse::roofline
