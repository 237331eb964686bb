// Attention of a few query tokens over a long cache, with the new tokens appended on the way, in one launch.
//
// A block takes the query rows that share a kv head over one part of the length (a split); its warps take
// turns of kStep tokens, each with a running maximum, sum and weighted values of its own. The block of the
// last split quantises the new rows and attends to what it wrote. An int8 cache is attended on its codes: K
// rows as integer dot products, V rows as halves, weighted by probability times scale; no row is written back
// dequantised.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cache_rows.h"
#include "kernels/cuda/decode_block.h"
#include "kernels/cuda/decode_inputs.h"
#include "kernels/cuda/decode_merge.h"
#include "kernels/cuda/decode_walk.h"
#include "kernels/cuda/device/launch.h"
#include "kernels/head_dims.h"

namespace kvfuse::cuda {
namespace {

// What an int8 cache is multiplied with; FloatQueryCodes in its place shows what IntegerCodes costs in
// accuracy.
using CodesFormat = IntegerCodes;

// Blocks that a multiprocessor is to hold at once. For one query row that leaves a thread 80 registers,
// enough for the loads of V to start before those of K are back (with 72 the compiler moves them behind), and
// puts 6 * 128 threads * 128 bytes = 98 KB under way where 29 KB cover the latency. Four rows need 161
// registers.
constexpr int planned_blocks(int rows) { return rows == 1 ? 6 : 3; }

// Grid: (splits, kv_heads * row tiles, batch).
template <class Format, int kHeadDim, int kRows>
KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(kDecodeThreads, planned_blocks(kRows))
    decode_attention_kernel(KVFUSE_GRID_CONSTANT DecodeParams p) {
  wait_for_previous_kernel();
  allow_next_kernel();
  auto& shared = block_shared<DecodeShared<Format, kHeadDim, kRows>>();
  const DecodeWork work = find_work(p, kRows);
  if (!work.valid) {
    const MergeUnit<kHeadDim, kRows> unit;
    const float spoilt[kPartWidth] = {NAN, NAN, NAN, NAN};
    if (work.split == 0 && unit.part == 0)
      write_result<Format>(p, work, unit.row, unit.channel, spoilt, NAN, 1.0F);
    return;
  }
  if (work.split >= work.active_splits) return;

  for (int row = warp_id(); row < kRows; row += kDecodeWarps) prepare_query(shared, p, work, row);
  if (threadIdx.x == 0) shared.work = work;
  block_sync();
  if (work.new_tokens > 0) attend_new_rows(shared, p, shared.work);
  Walk<Format, kHeadDim, kRows> walk;
  walk.start(shared, p, shared.work);
  walk.attend(shared, shared.work);
  walk.finish(shared);
  merge_and_write(shared, p, shared.work);
}

// ---- Host.

template <class Format, int kHeadDim, int kRows>
cudaError_t launch_decode(const AttentionParams& a, const DecodeOptions& options, cudaStream_t stream) {
  const std::int64_t group = a.heads / a.cache.kv_heads;
  const std::int64_t tiles = row_tiles(group * a.q_len);
  const DecodeParams params{.attention = a,
                            .options = options,
                            .group = static_cast<std::int32_t>(group),
                            .row_tiles = static_cast<std::int32_t>(tiles),
                            .log2_scale = a.softmax_scale * std::numbers::log2e_v<float>};
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(options.splits), static_cast<unsigned>(a.cache.kv_heads * tiles),
                   static_cast<unsigned>(a.cache.batch)),
      .threads = kDecodeThreads,
      .shared_bytes = sizeof(DecodeShared<Format, kHeadDim, kRows>),
      .overlap_previous = options.overlap_previous};
  return launch(decode_attention_kernel<Format, kHeadDim, kRows>, shape, stream, params);
}

template <class Format>
cudaError_t launch_format(const AttentionParams& a, const DecodeOptions& options, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  with_int(a.cache.head_dim, CudaHeadDims{}, [&](auto head_dim) {
    error = rows_per_tile(a.heads / a.cache.kv_heads * a.q_len) == 1
                ? launch_decode<Format, head_dim, 1>(a, options, stream)
                : launch_decode<Format, head_dim, 4>(a, options, stream);
  });
  return error;
}

bool is_supported(const AttentionParams& a, const DecodeOptions& options) {
  const auto fits = [&](const auto& view) { return view.dtype == a.q.dtype && has_aligned_rows(view); };
  const bool appends = a.k_new.data != nullptr;
  return a.q.dtype != DType::kInt8 && (a.cache.dtype == DType::kInt8 || a.cache.dtype == a.q.dtype) &&
         a.heads % a.cache.kv_heads == 0 && fits(a.q) && fits(a.out) &&
         (!appends || (fits(a.k_new) && fits(a.v_new))) && is_aligned16(a.cache.k) &&
         is_aligned16(a.cache.v) && is_aligned16(options.q_bias) && is_aligned16(options.k_bias) &&
         is_aligned16(options.v_bias) && is_aligned16(options.workspace) && options.splits >= 1 &&
         options.splits <= kMostSplits && (options.splits == 1 || options.workspace != nullptr);
}

}  // namespace

std::int64_t decode_splits(std::int64_t batch, std::int64_t kv_heads, std::int64_t query_rows,
                           std::int64_t capacity, int multiprocessors) {
  const std::int64_t blocks = batch * kv_heads * row_tiles(query_rows);  // of one split
  const std::int64_t places = std::int64_t{multiprocessors} * planned_blocks(rows_per_tile(query_rows));
  const std::int64_t most = std::clamp<std::int64_t>(capacity / kSplitTokens, 1, kMostSplits);
  // The share of places that work, averaged over the waves: the fewest splits that come close to the best.
  constexpr double kClose = 0.9;
  const auto share = [&](std::int64_t splits) {
    const std::int64_t waves = (blocks * splits + places - 1) / places;
    return waves == 0 ? 1.0 : static_cast<double>(blocks * splits) / static_cast<double>(waves * places);
  };
  double best = 0.0;
  for (std::int64_t splits = 1; splits <= most; ++splits) best = std::max(best, share(splits));
  std::int64_t splits = 1;
  while (share(splits) < kClose * best) ++splits;
  return splits;
}

std::int64_t decode_workspace_bytes(std::int64_t batch, std::int64_t kv_heads, std::int64_t query_rows,
                                    std::int64_t head_dim, std::int64_t splits) {
  return DecodeWorkspace{.tiles = batch * kv_heads * row_tiles(query_rows),
                         .splits = splits,
                         .tile_rows = rows_per_tile(query_rows),
                         .head_dim = static_cast<int>(head_dim)}
      .bytes();
}

cudaError_t decode_attention(const AttentionParams& a, const DecodeOptions& options, cudaStream_t stream) {
  if (a.cache.batch == 0 || a.heads == 0 || a.q_len == 0) return cudaSuccess;
  if (a.cache.kv_heads == 0 || !is_supported(a, options)) return cudaErrorInvalidValue;
  switch (a.cache.dtype) {
    case DType::kInt8:
      return launch_format<CodesFormat>(a, options, stream);
    case DType::kFloat32:
      return launch_format<Floats<float>>(a, options, stream);
    case DType::kFloat16:
      return launch_format<Floats<Float16>>(a, options, stream);
    case DType::kBFloat16:
      return launch_format<Floats<BFloat16>>(a, options, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace kvfuse::cuda
