// Public entry points: each forwards to the kernels of the active instruction set.
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernel_table.h"

namespace kvfuse::cpu {

namespace portable {
extern const KernelTable kKernels;
}
namespace avx2 {
extern const KernelTable kKernels;
}
namespace avx2_vnni {
extern const KernelTable kKernels;
}
namespace avx512 {
extern const KernelTable kKernels;
}
namespace avx512_vnni {
extern const KernelTable kKernels;
}
namespace amx_int8 {
extern const KernelTable kKernels;
}

namespace {

const KernelTable& kernels() {
  switch (active_isa()) {
    case Isa::kAmxInt8:
      return amx_int8::kKernels;
    case Isa::kAvx512Vnni:
      return avx512_vnni::kKernels;
    case Isa::kAvx512:
      return avx512::kKernels;
    case Isa::kAvx2Vnni:
      return avx2_vnni::kKernels;
    case Isa::kAvx2:
      return avx2::kKernels;
    case Isa::kPortable:
      break;
  }
  return portable::kKernels;
}

}  // namespace

void decode_attention(const AttentionParams& params) { kernels().decode_attention(params); }
void prefill_attention(const AttentionParams& params) { kernels().prefill_attention(params); }
void kv_append(const AppendParams& params) { kernels().kv_append(params); }
void quantize_kv(const QuantizeParams& params) { kernels().quantize_kv(params); }
void dequantize_kv(const DequantizeParams& params) { kernels().dequantize_kv(params); }
void linear(const LinearParams& params) { kernels().linear(params); }
void find_largest(const LargestParams& params) { kernels().find_largest(params); }
std::optional<std::int64_t> quantize_weight(const QuantizeWeightParams& params) {
  return kernels().quantize_weight(params);
}
std::uint64_t read_memory(const void* data, std::int64_t bytes) { return kernels().read_memory(data, bytes); }

}  // namespace kvfuse::cpu
