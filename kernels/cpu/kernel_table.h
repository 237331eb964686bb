// The entry points that exist once per instruction set.
#pragma once

#include "kernels/attention.h"
#include "kernels/bandwidth.h"
#include "kernels/kv_quant.h"
#include "kernels/largest.h"
#include "kernels/linear.h"
#include "kernels/weight_quant.h"

namespace kvfuse::cpu {

struct KernelTable {
  void (*decode_attention)(const AttentionParams&);
  void (*prefill_attention)(const AttentionParams&);
  void (*kv_append)(const AppendParams&);
  void (*quantize_kv)(const QuantizeParams&);
  void (*dequantize_kv)(const DequantizeParams&);
  void (*linear)(const LinearParams&);
  void (*find_largest)(const LargestParams&);
  std::optional<std::int64_t> (*quantize_weight)(const QuantizeWeightParams&);
  std::uint64_t (*read_memory)(const void*, std::int64_t);
};

}  // namespace kvfuse::cpu
