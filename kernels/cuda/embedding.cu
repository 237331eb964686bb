// Token plus position embedding, into the float32 residual stream.
#include "kernels/cuda/embedding.h"

#include <limits>

#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/grid.h"
#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/memory.h"
#include "kernels/cuda/vectors.h"

namespace kvfuse::cuda {
namespace {

constexpr int kEmbeddingThreads = 128;  // 1024 float16 elements: one round for most models

// Grid: (batch). A block adds two table rows.
template <typename T>
KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(kEmbeddingThreads, 1)
    embedding_kernel(KVFUSE_GRID_CONSTANT EmbeddingParams p) {
  constexpr int kElements = kVectorElements<T>;
  allow_next_kernel();
  wait_for_previous_kernel();  // which advanced tokens and cache_seqlens
  const std::int64_t b = blockIdx.x;
  const std::int64_t token = p.tokens[b];
  const std::int64_t position = p.cache_seqlens[b];
  const bool known = token >= 0 && token < p.vocab_size && position >= 0 && position < p.positions;
  const T* token_row = static_cast<const T*>(p.token_embedding) + (known ? token : 0) * p.width;
  const T* position_row = static_cast<const T*>(p.position_embedding) + (known ? position : 0) * p.width;
  for (std::int64_t i = static_cast<int>(threadIdx.x) * kElements; i < p.width;
       i += kEmbeddingThreads * kElements) {
    float x[kElements], shift[kElements];
    unpack<T>(load16_readonly(token_row + i), x);
    unpack<T>(load16_readonly(position_row + i), shift);
    KVFUSE_UNROLL
    for (int j = 0; j < kElements; ++j)
      x[j] = known ? x[j] + shift[j] : std::numeric_limits<float>::quiet_NaN();
    KVFUSE_UNROLL
    for (int j = 0; j < kElements; j += 4)
      store16(p.x + b * p.width + i + j, pack_floats(x[j], x[j + 1], x[j + 2], x[j + 3]));
  }
  if (threadIdx.x == 0 && p.visible_seqlens != nullptr)
    p.visible_seqlens[b] = static_cast<std::int32_t>(position + 1);
}

bool is_valid(const EmbeddingParams& p) {
  return p.batch > 0 && p.width > 0 && p.width % 8 == 0 && p.vocab_size > 0 && p.positions > 0 &&
         p.token_embedding != nullptr && p.token_format == WeightFormat::kFloat &&
         p.position_embedding != nullptr && p.tokens != nullptr && p.cache_seqlens != nullptr &&
         p.x != nullptr && is_aligned16(p.token_embedding) && is_aligned16(p.position_embedding) &&
         is_aligned16(p.x);
}

}  // namespace

cudaError_t embed(const EmbeddingParams& p, bool overlap_previous, cudaStream_t stream) {
  if (!is_valid(p)) return cudaErrorInvalidValue;
  return with_storage_type(p.dtype, [&](auto tag) {
    const LaunchShape shape{dim3(static_cast<unsigned>(p.batch)), kEmbeddingThreads, 0, overlap_previous};
    return launch(embedding_kernel<decltype(tag)>, shape, stream, p);
  });
}

}  // namespace kvfuse::cuda
