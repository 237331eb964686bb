// The quantisation operators on the CPU.
#include "csrc/ops/kv_quant_ops.h"

namespace kvfuse::ops {
namespace {

struct CpuQuantBackend {
  struct Guard {
    explicit Guard(c10::Device) {}
  };

  static void quantize(const QuantizeParams& params) { cpu::quantize_kv(params); }
  static void dequantize(const DequantizeParams& params) { cpu::dequantize_kv(params); }
};

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, CPU, m) { QuantOps<CpuQuantBackend>::register_in(m); }

}  // namespace kvfuse::ops
