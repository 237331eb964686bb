#include "csrc/roofline/strategies.h"

#include <algorithm>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

constexpr std::int64_t kRecentWindow = 256;

constexpr std::array kAttentionLinears = {Op::kQProj, Op::kKProj, Op::kVProj, Op::kOProj};
constexpr std::array kFfnLinears = {Op::kFfnGate, Op::kFfnUp, Op::kFfnDown};
constexpr std::array kAttentionProducts = {Op::kAttnQk, Op::kAttnAv};

struct Formats {
  Precision attention_linears = Precision::kFp16;
  Precision ffn_linears = Precision::kFp16;
  Precision attention_products = Precision::kFp16;
  Precision kv = Precision::kFp16;
  std::int64_t kv_recent_window = 0;
};

MixedPrecision strategy(std::string_view name, std::string_view description, const Formats& formats) {
  MixedPrecision result{.name = name, .description = description, .precisions = {}};
  const auto set = [&](const auto& ops, Precision precision) {
    for (const Op op : ops) result.precisions.of[index_of(op)] = precision;
  };
  set(kAttentionLinears, formats.attention_linears);
  set(kFfnLinears, formats.ffn_linears);
  set(kAttentionProducts, formats.attention_products);
  result.precisions.of[index_of(Op::kKvCache)] = formats.kv;
  result.precisions.kv_recent_window = formats.kv_recent_window;
  return result;
}

}  // namespace

double MixedPrecision::quoted_loss_pct() const {
  double most = 0;
  for (const Precision precision : precisions.of)
    if (const auto& loss = precision_info(precision).quoted_loss) most = std::max(most, loss->high_pct);
  return most;
}

std::vector<Precision> MixedPrecision::not_native(const Hardware& hardware) const {
  std::vector<Precision> missing;
  for (const Op op : kAllOps) {
    const Precision precision = precisions.at(op);
    if (op == Op::kKvCache || precision_info(precision).payload_bits >= 16) continue;
    if (!hardware.is_native(precision) && std::ranges::find(missing, precision) == missing.end())
      missing.push_back(precision);
  }
  return missing;
}

const std::vector<MixedPrecision>& mixed_precisions() {
  using enum Precision;
  static const std::vector<MixedPrecision> kStrategies = {
      strategy("fp16_baseline", "everything in 16 bits", {}),
      strategy("fp8_balanced", "linear layers, attention and cache in FP8",
               {.attention_linears = kFp8, .ffn_linears = kFp8, .attention_products = kFp8, .kv = kFp8}),
      strategy("int4_max_speed", "linear layers in INT4, attention and cache in FP8",
               {.attention_linears = kInt4, .ffn_linears = kInt4, .attention_products = kFp8, .kv = kFp8}),
      strategy("nvfp4_blackwell", "linear layers in NVFP4, attention and cache in FP8",
               {.attention_linears = kNvfp4, .ffn_linears = kNvfp4, .attention_products = kFp8, .kv = kFp8}),
      strategy("nvfp4_long_context",
               "linear layers and cache in NVFP4, the latest 256 tokens of the cache in 16 bits",
               {.attention_linears = kNvfp4,
                .ffn_linears = kNvfp4,
                .attention_products = kFp8,
                .kv = kNvfp4,
                .kv_recent_window = kRecentWindow}),
      strategy("quality_first", "only the FFN's linear layers in FP8", {.ffn_linears = kFp8}),
  };
  return kStrategies;
}

std::vector<std::string> mixed_precision_names() {
  std::vector<std::string> names;
  for (const MixedPrecision& strategy : mixed_precisions()) names.emplace_back(strategy.name);
  return names;
}

const MixedPrecision& find_mixed_precision(std::string_view name) {
  for (const MixedPrecision& strategy : mixed_precisions())
    if (strategy.name == normal_name(name)) return strategy;
  unknown_name("strategy", name, mixed_precision_names());
}

}  // namespace kvfuse::roofline
