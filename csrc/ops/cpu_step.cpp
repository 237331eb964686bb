#include "csrc/ops/cpu_step.h"

#include <vector>

#include "kernels/bandwidth.h"
#include "kernels/cpu/isa.h"
#include "kernels/weight_pack.h"

namespace kvfuse::ops {
namespace {

constexpr std::size_t kLineBytes = 64;
struct alignas(kLineBytes) Line {
  char bytes[kLineBytes];
};

}  // namespace

void cpu_decode_step(DecodeStepParams params, const OnPhase& on_phase) {
  static thread_local std::vector<Line> workspace;
  const auto bytes = static_cast<std::size_t>(cpu::decode_step_workspace_bytes(params));
  const std::size_t needed = (bytes + kLineBytes - 1) / kLineBytes;
  if (workspace.size() < needed) workspace.resize(needed);
  params.workspace = workspace.data();
  cpu::decode_step(params, on_phase);
}

void cpu_linear(const LinearParams& params) { cpu::linear(params); }

void cpu_pack_weight(void* weight, const PanelMatrix& matrix) { cpu::pack_weight(weight, matrix); }

void cpu_unpack_row(const void* weight, const PanelMatrix& matrix, std::int64_t output, void* row) {
  cpu::unpack_row(weight, matrix, output, row);
}

bool cpu_multiplies_bytes() { return cpu::multiplies_bytes(); }

bool cpu_multiplies_bfloat16() { return cpu::multiplies_bfloat16(); }

void cpu_find_largest(const LargestParams& params) { cpu::find_largest(params); }

std::uint64_t cpu_read_memory(const void* data, std::int64_t bytes) { return cpu::read_memory(data, bytes); }

}  // namespace kvfuse::ops
