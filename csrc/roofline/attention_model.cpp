#include "csrc/roofline/attention_model.h"

#include <algorithm>
#include <stdexcept>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

constexpr std::array<std::string_view, kAllAttentionKernels.size()> kNames = {
    "standard", "FA1", "FA2", "FA3", "FA4", "kvfuse-int8"};

constexpr std::int64_t kMostDecodeTokens = 8;  // beyond, the INT8 decode kernel is not what would run

// Of the published comparison: FA1 33.8 ms and FA2 29.4 ms in FP16, FA3 and FA4 15.4 ms in FP8, half the
// bytes and at twice the rate.
constexpr double kReferenceFlash1 = 29.4 / 33.8;
constexpr double kReferenceFlash3 = 29.4 / 15.4 / 2;

AttentionEfficiency of_papers(AttentionKernel kernel, Precision precision) {
  switch (kernel) {
    case AttentionKernel::kStandard:
      return {1, 1, "the roof itself: no kernel is named"};
    case AttentionKernel::kFlash1:
      return {0.325, 1, "FlashAttention-2 (arXiv 2307.08691): its predecessor reaches 25 to 40 %"};
    case AttentionKernel::kFlash2:
      return {0.615, 1, "FlashAttention-2 (arXiv 2307.08691): 50 to 73 % forward"};
    case AttentionKernel::kFlash3:
      if (precision == Precision::kFp8)
        return {1200.0 / 1978.9, 1, "FlashAttention-3 (arXiv 2407.08608): 1.2 of 1.979 PFLOP/s in FP8"};
      return {0.75, 1, "FlashAttention-3 (arXiv 2407.08608): 75 % in FP16"};
    case AttentionKernel::kFlash4:
      return {0.71, 1, "FlashAttention-4 (Zadouri et al., 2026): 1613 TFLOP/s, 71 %, in BF16 on a B200"};
    case AttentionKernel::kKvfuseInt8:
      // At 34 GB/s on the CPU, from length 4096 on.
      return {1, 0.79, "docs/decisions.md of this project: 76 to 82 % of the read bandwidth"};
  }
  return {};
}

AttentionEfficiency of_reference(AttentionKernel kernel) {
  constexpr std::string_view kSource = "published comparison on GB10, relative to FA2";
  switch (kernel) {
    case AttentionKernel::kFlash1:
      return {kReferenceFlash1, kReferenceFlash1, kSource};
    case AttentionKernel::kFlash3:
    case AttentionKernel::kFlash4:
      return {kReferenceFlash3, kReferenceFlash3, kSource};
    default:
      return {1, 1, kSource};
  }
}

double pairs_of(const AttentionShape& shape) {
  const auto queries = static_cast<double>(shape.query_tokens);
  const auto length = static_cast<double>(shape.kv_len);
  const double pairs =
      shape.causal ? queries * (length - queries) + queries * (queries + 1) / 2 : queries * length;
  return pairs * shape.kept_share;
}

}  // namespace

std::string_view attention_name(AttentionKernel kernel) { return kNames[static_cast<std::size_t>(kernel)]; }

std::vector<std::string> attention_names() { return {kNames.begin(), kNames.end()}; }

AttentionKernel parse_attention(std::string_view name) {
  for (const AttentionKernel kernel : kAllAttentionKernels)
    if (normal_name(attention_name(kernel)) == normal_name(name)) return kernel;
  unknown_name("attention", name, attention_names());
}

void check_attention(const AttentionShape& shape) {
  check_range("batch", shape.batch, 1, kMostBatch);
  check_range("n_head", shape.n_head, 1, kMostHeads);
  check_range("n_kv_head", shape.n_kv_head, 1, kMostHeads);
  check_range("head_dim", shape.head_dim, 1, kMostHeadDim);
  check_range("kv_len", shape.kv_len, 1, kMostTokens);
  check_range("query_tokens", shape.query_tokens, 1, shape.kv_len);
  check_divides("n_kv_head", shape.n_kv_head, "n_head", shape.n_head);
  check_share("kept_share", shape.kept_share);
}

AttentionEfficiency attention_efficiency(AttentionKernel kernel, Precision precision,
                                         EfficiencyProfile profile) {
  return profile == EfficiencyProfile::kPapers ? of_papers(kernel, precision) : of_reference(kernel);
}

Precision kernel_precision(AttentionKernel kernel, Precision precision) {
  switch (kernel) {
    case AttentionKernel::kStandard:
      return precision;
    case AttentionKernel::kKvfuseInt8:
      return Precision::kInt8;
    case AttentionKernel::kFlash1:
    case AttentionKernel::kFlash2:
      return precision == Precision::kBf16 ? Precision::kBf16 : Precision::kFp16;
    case AttentionKernel::kFlash3:
    case AttentionKernel::kFlash4:
      return precision == Precision::kFp8 || precision == Precision::kBf16 ? precision : Precision::kFp16;
  }
  return precision;
}

AttentionPrediction predict_attention(const Hardware& hardware, AttentionKernel kernel,
                                      const AttentionShape& shape, Precision precision,
                                      EfficiencyProfile profile) {
  check_attention(shape);
  if (shape.kept_share != 1 && kernel != AttentionKernel::kFlash4)
    throw std::invalid_argument("roofline: expected kept_share to be 1 for " +
                                std::string(attention_name(kernel)) + ", which skips no blocks, got " +
                                number_text(shape.kept_share));
  const auto d = [](std::int64_t value) { return static_cast<double>(value); };
  const Precision stored = kernel_precision(kernel, precision);
  const Precision wide = activation_precision(stored);
  // This project's kernel widens the codes in registers; it does not multiply integers.
  const Precision arithmetic = kernel == AttentionKernel::kKvfuseInt8 ? wide : stored;
  const double rows = d(shape.batch) * d(shape.query_tokens) * d(shape.n_head);
  const double cached = d(shape.batch) * d(shape.kv_len) * d(shape.n_kv_head);
  const double scores = rows * d(shape.kv_len);
  const double element = matrix_bytes(wide, 1, 1);

  AttentionPrediction result;
  result.kernel = kernel;
  result.precision = stored;
  result.flops = 4 * d(shape.batch) * d(shape.n_head) * d(shape.head_dim) * pairs_of(shape);
  result.bytes = 2 * rows * d(shape.head_dim) * element +
                 2 * shape.kept_share * matrix_bytes(stored, cached, shape.head_dim);
  if (kernel == AttentionKernel::kStandard) result.bytes += 4 * scores * element;
  result.ai = result.flops / result.bytes;
  result.memory_ms = 1e3 * result.bytes / hardware.bytes_per_s();
  result.compute_ms = 1e3 * result.flops / peak_of(hardware, arithmetic).flops_per_s;
  result.efficiency = attention_efficiency(kernel, stored, profile);
  const double memory_ms = result.memory_ms / result.efficiency.memory;
  const double compute_ms = result.compute_ms / result.efficiency.compute;
  result.time_ms = std::max(memory_ms, compute_ms);
  result.bound = slower_limit(memory_ms, compute_ms);
  return result;
}

std::vector<AttentionPrediction> compare_attention(const Hardware& hardware, const AttentionShape& shape,
                                                   EfficiencyProfile profile) {
  AttentionShape dense = shape;
  dense.kept_share = 1;
  const double flash1_ms =
      predict_attention(hardware, AttentionKernel::kFlash1, dense, Precision::kFp16, profile).time_ms;
  std::vector<AttentionPrediction> results;
  for (const AttentionKernel kernel : kAllAttentionKernels) {
    if (kernel == AttentionKernel::kKvfuseInt8 && shape.query_tokens > kMostDecodeTokens) continue;
    const bool flash4 = kernel == AttentionKernel::kFlash4;
    const bool narrow = flash4 || kernel == AttentionKernel::kFlash3;
    AttentionPrediction one = predict_attention(hardware, kernel, flash4 ? shape : dense,
                                                narrow ? Precision::kFp8 : Precision::kFp16, profile);
    one.speedup = flash1_ms / one.time_ms;
    results.push_back(one);
  }
  return results;
}

}  // namespace kvfuse::roofline
