// The attention operators on CUDA.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "csrc/ops/attention_ops.h"
#include "csrc/ops/cuda_launch.h"
#include "csrc/ops/trust_lengths.h"
#include "kernels/cuda/attention.h"

namespace kvfuse::ops {
namespace {

// How the decode kernel divides its work on the current device.
struct DecodeSplit {
  std::int64_t splits;
  std::int64_t workspace_bytes;
};

DecodeSplit decode_split(std::int64_t batch, std::int64_t kv_heads, std::int64_t query_rows,
                         std::int64_t capacity, std::int64_t head_dim) {
  int device = 0;
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const std::int64_t splits = cuda::decode_splits(batch, kv_heads, query_rows, capacity, multiprocessors);
  return {splits, cuda::decode_workspace_bytes(batch, kv_heads, query_rows, head_dim, splits)};
}

struct CudaBackend {
  static constexpr std::int64_t kAlignment = 16;
  using Guard = c10::cuda::CUDAGuard;

  static void check_cache_memory(const char* op, const CacheTensors& cache) {
    check_aligned(op, {"k_cache", cache.k_cache});
    check_aligned(op, {"v_cache", cache.v_cache});
    if (cache.k_cache.scalar_type() != at::kChar) return;
    check_aligned(op, {"k_scale", *cache.k_scale});
    check_aligned(op, {"v_scale", *cache.v_scale});
  }

  // A copy to the host waits for the stream, which a capture forbids.
  static void check_lengths(const char* op, const CacheTensors& cache, std::int64_t appended) {
    if (TrustLengths::active()) return;
    if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) return;
    ops::check_lengths(op, cache.cache_seqlens.cpu(), cache.k_cache.size(2), appended);
  }

  static std::int64_t workspace_bytes(const at::Tensor& q, const at::Tensor& k_cache) {
    return decode_split(q.size(0), k_cache.size(1), q.size(1) / k_cache.size(1) * q.size(2), k_cache.size(2),
                        q.size(3))
        .workspace_bytes;
  }

  static void append(const char* op, const AppendParams& params) {
    check_launch(op, cuda::kv_append(params, c10::cuda::getCurrentCUDAStream()));
  }

  static void decode(const char* op, const AttentionParams& params,
                     const std::optional<at::Tensor>& workspace) {
    const CacheView& cache = params.cache;
    const DecodeSplit split =
        decode_split(cache.batch, cache.kv_heads, params.heads / cache.kv_heads * params.q_len,
                     cache.capacity, cache.head_dim);
    const at::Tensor scratch =
        is_given(workspace)
            ? *workspace
            : at::zeros({split.workspace_bytes}, at::TensorOptions().dtype(at::kByte).device(at::kCUDA));
    check_launch(
        op, cuda::decode_attention(params, {.workspace = scratch.mutable_data_ptr(), .splits = split.splits},
                                   c10::cuda::getCurrentCUDAStream()));
  }

  static void prefill(const char* op, const AttentionParams& params) {
    check_launch(op, cuda::prefill_attention(params, c10::cuda::getCurrentCUDAStream()));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, CUDA, m) { AttentionOps<CudaBackend>::register_in(m); }

}  // namespace kvfuse::ops
