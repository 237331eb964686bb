// The kernels of the instruction set that this file is compiled for.
#include "kernels/cpu/kernel_table.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

void decode_attention(const AttentionParams& params);
void prefill_attention(const AttentionParams& params);
void kv_append(const AppendParams& params);
void quantize_kv(const QuantizeParams& params);
void dequantize_kv(const DequantizeParams& params);
void linear(const LinearParams& params);
void find_largest(const LargestParams& params);
std::optional<std::int64_t> quantize_weight(const QuantizeWeightParams& params);
std::uint64_t read_memory(const void* data, std::int64_t bytes);

extern const KernelTable kKernels;
const KernelTable kKernels = {decode_attention, prefill_attention, kv_append,
                              quantize_kv,      dequantize_kv,     linear,
                              find_largest,     quantize_weight,   read_memory};

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
