// The CPU's decode step, its parts and what they are bounded by, for code outside of libkvfuse_ops.so,
// which holds the kernels. Includes nothing of torch.
#pragma once

#include "csrc/ops/export.h"
#include "kernels/decode_step.h"
#include "kernels/largest.h"
#include "kernels/linear.h"
#include "kernels/weight_pack.h"

namespace kvfuse::ops {

// cpu::decode_step with a workspace of its own, kept for the next call of this thread.
KVFUSE_OPS_API void cpu_decode_step(DecodeStepParams params, const OnPhase& on_phase);

KVFUSE_OPS_API void cpu_linear(const LinearParams& params);  // cpu::linear

// cpu::pack_weight, cpu::unpack_row
KVFUSE_OPS_API void cpu_pack_weight(void* weight, const PanelMatrix& matrix);
KVFUSE_OPS_API void cpu_unpack_row(const void* weight, const PanelMatrix& matrix, std::int64_t output,
                                   void* row);

KVFUSE_OPS_API bool cpu_multiplies_bfloat16();  // cpu::multiplies_bfloat16
KVFUSE_OPS_API bool cpu_multiplies_bytes();     // cpu::multiplies_bytes

KVFUSE_OPS_API void cpu_find_largest(const LargestParams& params);  // cpu::find_largest

KVFUSE_OPS_API std::uint64_t cpu_read_memory(const void* data, std::int64_t bytes);  // cpu::read_memory

}  // namespace kvfuse::ops
