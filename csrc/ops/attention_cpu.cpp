// The attention operators on the CPU.
#include "csrc/ops/attention_ops.h"

namespace kvfuse::ops {
namespace {

struct CpuBackend {
  static constexpr std::int64_t kAlignment = 1;  // the kernels load whole vectors from any address

  struct Guard {
    explicit Guard(c10::Device) {}
  };

  static void check_cache_memory(const char*, const CacheTensors&) {}

  static void check_lengths(const char* op, const CacheTensors& cache, std::int64_t appended) {
    ops::check_lengths(op, cache.cache_seqlens, cache.k_cache.size(2), appended);
  }

  static std::int64_t workspace_bytes(const at::Tensor&, const at::Tensor&) { return 0; }

  static void append(const char*, const AppendParams& params) { cpu::kv_append(params); }

  static void decode(const char*, const AttentionParams& params, const std::optional<at::Tensor>&) {
    cpu::decode_attention(params);
  }

  static void prefill(const char*, const AttentionParams& params) { cpu::prefill_attention(params); }
};

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, CPU, m) { AttentionOps<CpuBackend>::register_in(m); }

}  // namespace kvfuse::ops
