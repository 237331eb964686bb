// The CPU's decode step for code outside of libkvfuse_ops.so, which holds the kernels. Includes nothing of
// torch.
#pragma once

#include "csrc/ops/export.h"
#include "kernels/decode_step.h"

namespace kvfuse::ops {

// cpu::decode_step with a workspace of its own, kept for the next call of this thread.
KVFUSE_OPS_API void cpu_decode_step(DecodeStepParams params, const OnPhase& on_phase);

}  // namespace kvfuse::ops
