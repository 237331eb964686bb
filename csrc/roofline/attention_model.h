// Attention kernels as models: FlashAttention 1 to 4, attention without fusing, and this project's decode
// attention over an INT8 cache.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/roofline/gemm.h"
#include "csrc/roofline/hardware.h"

namespace kvfuse::roofline {

enum class AttentionKernel { kStandard, kFlash1, kFlash2, kFlash3, kFlash4, kKvfuseInt8 };
inline constexpr std::array kAllAttentionKernels = {AttentionKernel::kStandard, AttentionKernel::kFlash1,
                                                    AttentionKernel::kFlash2,   AttentionKernel::kFlash3,
                                                    AttentionKernel::kFlash4,   AttentionKernel::kKvfuseInt8};
std::string_view attention_name(AttentionKernel kernel);  // "FA3"
AttentionKernel parse_attention(std::string_view name);
std::vector<std::string> attention_names();

// One layer's attention: the last `query_tokens` of `kv_len` tokens look at those before them.
struct AttentionShape {
  std::int64_t batch = 1;
  std::int64_t n_head = 1;
  std::int64_t n_kv_head = 1;
  std::int64_t head_dim = 64;
  std::int64_t query_tokens = 1;
  std::int64_t kv_len = 1;
  bool causal = true;
  double kept_share = 1;  // of the blocks of scores; less than 1 only with FA4, which can skip the rest
};
void check_attention(const AttentionShape& shape);

// How much of a limit a kernel reaches.
enum class EfficiencyProfile {
  kPapers,    // of the arithmetic, as each kernel's authors report; memory at its full rate
  kReference  // as the published comparison has it, which gives ratios: FA2 = 1
};
struct AttentionEfficiency {
  double compute = 1;
  double memory = 1;
  std::string_view source;
};
AttentionEfficiency attention_efficiency(AttentionKernel kernel, Precision precision,
                                         EfficiencyProfile profile = EfficiencyProfile::kPapers);

// The format that a kernel keeps K and V in, asked for `precision`: FA1 and FA2 know 16 bits only, FA3 and
// FA4 also FP8, this project's decode attention reads INT8.
Precision kernel_precision(AttentionKernel kernel, Precision precision);

struct AttentionPrediction {
  AttentionKernel kernel = AttentionKernel::kFlash2;
  Precision precision = Precision::kFp16;  // of K and V
  double flops = 0;
  double bytes = 0;
  double ai = 0;
  double memory_ms = 0;   // at full bandwidth
  double compute_ms = 0;  // at peak
  AttentionEfficiency efficiency;
  double time_ms = 0;  // the slower limit as far as the kernel reaches it
  Bound bound = Bound::kMemory;
  double speedup = 1;  // over FA1 in 16 bits; compare_attention sets it
};

// FLOPs: 4 head_dim a visible pair and query head. Bytes: queries and result in 16 bits, K and V once, in the
// kernel's format with its scales; without fusing also scores and probabilities, written and read.
// time = max(bytes / (bandwidth * memory efficiency), FLOPs / (peak * compute efficiency)).
AttentionPrediction predict_attention(const Hardware& hardware, AttentionKernel kernel,
                                      const AttentionShape& shape, Precision precision,
                                      EfficiencyProfile profile = EfficiencyProfile::kPapers);

// FA1 and FA2 in 16 bits, FA3 and FA4 in FP8, the unfused one and, for up to 8 query tokens, the INT8 one.
std::vector<AttentionPrediction> compare_attention(const Hardware& hardware, const AttentionShape& shape,
                                                   EfficiencyProfile profile = EfficiencyProfile::kPapers);

}  // namespace kvfuse::roofline
