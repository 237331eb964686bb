// Writes new K and V rows into the cache; an int8 cache quantises them on the way.
#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/quantise_row.h"
#include "kernels/head_dims.h"

namespace kvfuse::cuda {
namespace {

constexpr int kThreads = 128;  // a row to each of four warps
constexpr int kWarps = kThreads / 32;

// Grid: (tokens * kv_heads * 2 / kWarps, batch). K and V rows take turns.
KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(kThreads, 8) kv_append_kernel(KVFUSE_GRID_CONSTANT AppendParams p) {
  const CacheView& cache = p.cache;
  const int b = static_cast<int>(blockIdx.y);
  const std::int64_t job = std::int64_t{blockIdx.x} * kWarps + warp_id();
  const bool is_k = job % 2 == 0;
  const std::int64_t kv_head = job / 2 % cache.kv_heads;
  const std::int64_t token = job / 2 / cache.kv_heads;
  const std::int64_t length = p.cache_seqlens[b];
  if (token >= p.tokens || length < 0 || length + p.tokens > cache.capacity) return;

  const ConstTokenView& from = is_k ? p.k_new : p.v_new;
  const int head_dim = static_cast<int>(cache.head_dim);
  const std::int64_t row = (b * cache.kv_heads + kv_head) * cache.capacity + length + token;
  void* const side = is_k ? cache.k : cache.v;
  with_float_type(from.dtype, [&](auto zero) {
    using T = decltype(zero);
    const RowPart part = read_part<T>(row_of<T>(from, b, kv_head, token), nullptr, head_dim);
    if (cache.dtype != DType::kInt8) {
      write_part(static_cast<T*>(side) + row * head_dim, part, head_dim);
      return;
    }
    const NewRow quantised = quantise_part(part);
    write_codes(static_cast<std::int8_t*>(side) + row * head_dim, quantised.codes, head_dim);
    if (lane_id() == 0) (is_k ? cache.k_scale : cache.v_scale)[row] = quantised.scale;
  });
}

}  // namespace

cudaError_t kv_append(const AppendParams& params, cudaStream_t stream) {
  const CacheView& cache = params.cache;
  const DType dtype = params.k_new.dtype;
  if (dtype == DType::kInt8 || params.v_new.dtype != dtype ||
      (cache.dtype != DType::kInt8 && cache.dtype != dtype) || !contains(CudaHeadDims{}, cache.head_dim) ||
      !has_aligned_rows(params.k_new) || !has_aligned_rows(params.v_new))
    return cudaErrorInvalidValue;
  const std::int64_t jobs = params.tokens * cache.kv_heads * 2;
  if (jobs == 0 || cache.batch == 0) return cudaSuccess;
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>((jobs + kWarps - 1) / kWarps), static_cast<unsigned>(cache.batch)),
      .threads = kThreads,
      .shared_bytes = 0};
  return launch(kv_append_kernel, shape, stream, params);
}

}  // namespace kvfuse::cuda
