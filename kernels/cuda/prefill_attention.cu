// Causal attention of many query tokens on tensor cores, appending the prompt in the same launch.
//
// A block attends from one tile of queries of one head to the cached tokens and then to the new ones, a tile
// of tokens at a time with a running softmax: while it computes one tile, the next is on its way. New tokens
// always come from k_new and v_new, for an int8 cache quantised anew by every block that needs them: no block
// reads what another one writes. Every query attends to what the cache holds, or will.
#include <algorithm>
#include <climits>
#include <type_traits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/prefill_products.h"
#include "kernels/cuda/prefill_rows.h"
#include "kernels/cuda/prefill_softmax.h"
#include "kernels/head_dims.h"

namespace kvfuse::cuda {
namespace {

// Blocks of a multiprocessor that the registers are shared out for.
template <int kHeadDim>
constexpr int kPrefillBlocks = kHeadDim == 64 ? 3 : 2;

template <typename T, bool kInt8, int kHeadDim>
struct PrefillShared {
  typename PrefillTile<T, kHeadDim>::Stage stages[2];
  typename PrefillTile<T, kHeadDim>::Scales scales;
  typename PrefillProducts<T, kInt8, kHeadDim>::SharedQueries queries;
};
constexpr std::size_t kMostSharedBytes = 99 << 10;  // of a block on sm_86 and sm_89

// A block's share of the work.
struct PrefillTask {
  int b;
  std::int64_t head;
  std::int64_t kv_head;
  int first_query;
  int queries;
  int cached;         // tokens in the cache before the call
  int visible_first;  // tokens that the first query sees; one more for each further query
  int end;            // tokens that the last query sees
  int own_begin;      // first token that this block writes into the cache; the last is its last query's
  bool valid;         // the sequence fits its cache
};

// The last queries see the most tokens: their blocks start first, so that all end together.
KVFUSE_DEVICE PrefillTask prefill_task(const AttentionParams& p) {
  PrefillTask task;
  task.b = static_cast<int>(blockIdx.z);
  task.head = blockIdx.y;
  const std::int64_t group = p.heads / p.cache.kv_heads;
  task.kv_head = task.head / group;
  const int q_len = static_cast<int>(p.q_len);
  task.first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kPrefillQueries;
  task.queries = q_len - task.first_query < kPrefillQueries ? q_len - task.first_query : kPrefillQueries;
  const int length = p.cache_seqlens[task.b];
  const bool append = p.k_new.data != nullptr;
  task.valid = length >= 0 && length <= p.cache.capacity - (append ? q_len : 0);
  task.cached = task.valid ? length : 0;
  task.visible_first = task.cached - (append ? 0 : q_len) + task.first_query + 1;
  task.end = task.valid ? maximum(task.visible_first + task.queries - 1, 0) : 0;
  // One head of a group writes; a query tile's own tokens are in reach of each of its blocks.
  const bool writes = append && task.head % group == 0;
  task.own_begin = writes ? task.cached + task.first_query : task.end;
  return task;
}

// The block's query rows into `rows`; rows past the last query become zeros.
template <typename T, int kHeadDim>
KVFUSE_DEVICE void fetch_queries(const ConstTokenView& q, const PrefillTask& task,
                                 typename PrefillTile<T, kHeadDim>::Row* rows) {
  using Tile = PrefillTile<T, kHeadDim>;
  const T* first = row_of<T>(q, task.b, task.head, task.first_query);
  for (int i = static_cast<int>(threadIdx.x); i < kPrefillQueries * Tile::kRowChunks; i += kPrefillThreads) {
    const int row = i / Tile::kRowChunks;
    const int chunk = i % Tile::kRowChunks;
    uint4* target = &rows[row].chunks[chunk];
    if (row < task.queries)
      fetch_chunk(target, first + row * q.token_stride + chunk * kVectorElements<T>);
    else
      *target = make_uint4(0, 0, 0, 0);
  }
}

// Normalises the warp's results and writes them by way of `rows`, shared memory that nobody else uses.
template <typename T, bool kInt8, int kHeadDim>
KVFUSE_DEVICE void write_results(const AttentionParams& p, const PrefillTask& task,
                                 const PrefillSoftmax<T, kInt8, kHeadDim>& softmax,
                                 const float (&results)[kHeadDim / 8][4],
                                 typename PrefillTile<T, kHeadDim>::Row* rows) {
  using Tile = PrefillTile<T, kHeadDim>;
  const int warp_row = warp_id() * kWarpQueries;
  rows += warp_row;
  KVFUSE_UNROLL
  for (int half = 0; half < 2; ++half) {
    const float factor = softmax.normaliser(half);
    T* row = reinterpret_cast<T*>(rows[lane_id() / 4 + 8 * half].chunks) + lane_id() % 4 * 2;
    KVFUSE_UNROLL
    for (int n = 0; n < kHeadDim / 8; ++n) {
      row[8 * n] = from_f32<T>(results[n][2 * half] * factor);
      row[8 * n + 1] = from_f32<T>(results[n][2 * half + 1] * factor);
    }
  }
  warp_sync();
  T* out = row_of<T>(p.out, task.b, task.head, task.first_query + warp_row);
  for (int i = lane_id(); i < kWarpQueries * Tile::kRowChunks; i += 32) {
    const int row = i / Tile::kRowChunks;
    const int chunk = i % Tile::kRowChunks;
    if (warp_row + row < task.queries)
      store_chunk(out + row * p.out.token_stride + chunk * kVectorElements<T>, rows[row].chunks[chunk]);
  }
}

// Grid: (query tiles, heads, batch). A warp owns 16 queries.
template <typename T, bool kInt8, int kHeadDim>
KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(kPrefillThreads, kPrefillBlocks<kHeadDim>)
    prefill_attention_kernel(KVFUSE_GRID_CONSTANT AttentionParams p) {
  using Tile = PrefillTile<T, kHeadDim>;
  auto& shared = block_shared<PrefillShared<T, kInt8, kHeadDim>>();
  const PrefillTask task = prefill_task(p);
  using Rows = PrefillRows<T, kInt8, kHeadDim>;
  const Rows k(p.cache, p.cache.k, p.cache.k_scale, p.k_new, task.b, task.kv_head, task.cached, task.end);
  const Rows v(p.cache, p.cache.v, p.cache.v_scale, p.v_new, task.b, task.kv_head, task.cached, task.end);
  PrefillSoftmax<T, kInt8, kHeadDim> softmax;
  if (!task.valid) softmax.spoil();
  float results[kHeadDim / 8][4] = {};

  float k_scale = k.fetch(0, shared.stages[0].rows);
  float v_scale = v.fetch(0, shared.stages[0].rows + Tile::kTokens);
  fetch_queries<T, kHeadDim>(p.q, task, shared.stages[1].rows);  // until the second tile takes their place
  copy_async_commit();
  copy_async_wait<0>();
  block_sync();
  const int warp_query = warp_id() * kWarpQueries;
  const PrefillProducts<T, kInt8, kHeadDim> products(shared.stages[1].rows + warp_query, shared.queries);

  const float factor = p.softmax_scale * 1.44269504F;  // log2(e)
  const int visible_first = task.visible_first + warp_query;
  for (int first = 0, stage = 0; first < task.end; first += Tile::kTokens, stage ^= 1) {
    auto* k_rows = shared.stages[stage].rows;
    auto* v_rows = k_rows + Tile::kTokens;
    copy_async_wait<0>();
    block_sync();  // this tile has arrived, and the one before it is done with
    const float old_k_scale = k_scale;
    const float old_v_scale = v_scale;
    if (first + Tile::kTokens < task.end) {
      auto* next_rows = shared.stages[stage ^ 1].rows;
      k_scale = k.fetch(first + Tile::kTokens, next_rows);
      v_scale = v.fetch(first + Tile::kTokens, next_rows + Tile::kTokens);
      copy_async_commit();
    }
    k.prepare(first, k_rows, old_k_scale, task.own_begin, factor, shared.scales.score);
    v.prepare(first, v_rows, old_v_scale, task.own_begin, 1.0F, shared.scales.v);
    if constexpr (kInt8) block_sync();

    // Nothing to do for a warp without queries, or if all of this tile is past what its last query sees.
    if (warp_query >= task.queries || first >= visible_first + kWarpQueries - 1) continue;
    float scores[Tile::kTokens / 8][4];
    products.score(k_rows, scores);
    const int visible[2] = {visible_first + lane_id() / 4 - first, visible_first + lane_id() / 4 + 8 - first};
    if (first + Tile::kTokens <= visible_first)
      softmax.template weigh<false>(scores, results, visible, shared.scales, factor);
    else
      softmax.template weigh<true>(scores, results, visible, shared.scales, factor);
    products.add_values(scores, v_rows, results);
  }
  block_sync();  // the results go where other warps may still read V
  write_results<T, kInt8, kHeadDim>(p, task, softmax, results, shared.stages[0].rows);
}

template <typename T, bool kInt8>
cudaError_t launch_prefill(const AttentionParams& p, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  with_int(p.cache.head_dim, CudaHeadDims{}, [&](auto head_dim) {
    using Shared = PrefillShared<T, kInt8, head_dim>;
    static_assert(sizeof(Shared) <= kMostSharedBytes);
    const auto count = [](std::int64_t n) { return static_cast<unsigned>(n); };
    const LaunchShape shape{.grid = dim3(count((p.q_len + kPrefillQueries - 1) / kPrefillQueries),
                                         count(p.heads), count(p.cache.batch)),
                            .threads = kPrefillThreads,
                            .shared_bytes = sizeof(Shared)};
    error = launch(prefill_attention_kernel<T, kInt8, head_dim>, shape, stream, p);
  });
  return error;
}

template <typename T>
cudaError_t launch_prefill(const AttentionParams& p, cudaStream_t stream) {
  if (p.cache.dtype == DType::kInt8) return launch_prefill<T, true>(p, stream);
  if (p.cache.dtype == p.q.dtype) return launch_prefill<T, false>(p, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t prefill_attention(const AttentionParams& p, cudaStream_t stream) {
  if (p.cache.capacity > INT_MAX) return cudaErrorInvalidValue;  // tokens are counted in 32 bits
  if (p.q_len == 0 || p.heads == 0 || p.cache.batch == 0) return cudaSuccess;
  return with_storage_type(p.q.dtype,
                           [&](auto element) { return launch_prefill<decltype(element)>(p, stream); });
}

}  // namespace kvfuse::cuda
