// The end of decode attention: the warps of a block are merged, and, if several blocks share the query rows,
// their results through the workspace, by whichever block arrives last and always in the same order.
#pragma once

#include <bit>
#include <cstdint>
#include <numbers>

#include "kernels/cuda/decode_block.h"
#include "kernels/cuda/decode_inputs.h"
#include "kernels/cuda/device/grid.h"
#include "kernels/cuda/device/memory.h"

namespace kvfuse::cuda {

// The workspace: a counter for each (sequence, kv head, row tile), then for each of these, each split and row
// the weighted values and one more vector: top, sum.
struct DecodeWorkspace {
  std::int64_t tiles;  // of all sequences and kv heads
  std::int64_t splits;
  int tile_rows;
  int head_dim;

  constexpr std::int64_t row_offset(std::int64_t tile, std::int64_t split, int row) const {
    const std::int64_t counter_bytes = (tiles * 4 + 15) / 16 * 16;
    return counter_bytes + ((tile * splits + split) * tile_rows + row) * (head_dim + 4) * 4;
  }
  constexpr std::int64_t bytes() const { return row_offset(tiles, 0, 0); }
};

// Which four channels of which row a thread merges. More threads than there are such units share them.
template <int kHeadDim, int kRows>
struct MergeUnit {
  static constexpr int kQuads = kHeadDim / kPartWidth;
  static constexpr int kUnits = kRows * kQuads;
  static constexpr int kParts = kDecodeThreads / kUnits;
  static_assert(kUnits <= kDecodeThreads);

  int part = static_cast<int>(threadIdx.x) / kUnits;  // may be kParts: left over
  int row = static_cast<int>(threadIdx.x) % kUnits / kQuads;
  int channel = static_cast<int>(threadIdx.x) % kQuads * kPartWidth;
};

// Four channels of a result, normalised; zeros for a row that saw no token. `sum` is relative to 2^top.
template <class Format>
KVFUSE_DEVICE void write_result(const DecodeParams& p, const DecodeWork& work, int row, int channel,
                                const float (&values)[kPartWidth], float top, float sum) {
  if (row >= work.rows) return;
  const QueryPlace place = place_of(p, work, row);
  float* const lse = p.attention.softmax_lse;
  if (lse != nullptr && channel == 0)
    lse[(work.b * p.attention.heads + place.head) * p.attention.q_len + place.token] =
        (top + log2f(sum)) * std::numbers::ln2_v<float>;
  with_query_type<Format>(p.attention.out.dtype, [&](auto zero) {
    using T = decltype(zero);
    Packed<T> result;
    KVFUSE_UNROLL
    for (int i = 0; i < kPartWidth; ++i) result.x[i] = from_f32<T>(sum == 0.0F ? 0.0F : values[i] / sum);
    *reinterpret_cast<Packed<T>*>(row_of<T>(p.attention.out, work.b, place.head, place.token) + channel) =
        result;
  });
}

template <class Format, int kHeadDim, int kRows>
KVFUSE_DEVICE void merge_splits(DecodeShared<Format, kHeadDim, kRows>& shared, const DecodeParams& p,
                                const DecodeWork& work, const char* rows, std::int64_t split_bytes) {
  using Unit = MergeUnit<kHeadDim, kRows>;
  const Unit unit;
  constexpr int kRowBytes = (kHeadDim + 4) * 4;
  for (int i = static_cast<int>(threadIdx.x); i < work.active_splits * kRows; i += kDecodeThreads) {
    const uint4 totals = load16(rows + i / kRows * split_bytes + i % kRows * kRowBytes + kHeadDim * 4);
    shared.split_top[i % kRows][i / kRows] = std::bit_cast<float>(totals.x);
    shared.split_sum[i % kRows][i / kRows] = std::bit_cast<float>(totals.y);
  }
  block_sync();
  float top = shared.split_top[unit.row][0];
  for (int split = 1; split < work.active_splits; ++split)
    top = maximum(top, shared.split_top[unit.row][split]);

  const int count = (work.active_splits + Unit::kParts - 1) / Unit::kParts;
  const int end = minimum((unit.part + 1) * count, work.active_splits);
  const char* own = rows + unit.row * kRowBytes + unit.channel * 4;
  float values[kPartWidth] = {};
  float sum = 0.0F;
  constexpr int kBatch = 8;  // loads in flight
  for (int first = unit.part * count; first < end; first += kBatch) {
    uint4 loaded[kBatch];
    KVFUSE_UNROLL
    for (int i = 0; i < kBatch; ++i)
      if (first + i < end) loaded[i] = load16(own + (first + i) * split_bytes);
    KVFUSE_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= end) break;
      float x[kPartWidth];
      unpack<float>(loaded[i], x);
      const float factor = exp2_approx(shared.split_top[unit.row][first + i] - top);
      sum += shared.split_sum[unit.row][first + i] * factor;
      KVFUSE_UNROLL
      for (int j = 0; j < kPartWidth; ++j) values[j] += x[j] * factor;
    }
  }
  KVFUSE_UNROLL
  for (int i = 0; i < kPartWidth; ++i) shared.part_values[threadIdx.x][i] = values[i];
  shared.part_sum[threadIdx.x] = sum;
  block_sync();
  if (unit.part > 0) return;
  for (int part = 1; part < Unit::kParts; ++part) {
    const int other = static_cast<int>(threadIdx.x) + part * Unit::kUnits;
    sum += shared.part_sum[other];
    KVFUSE_UNROLL
    for (int i = 0; i < kPartWidth; ++i) values[i] += shared.part_values[other][i];
  }
  write_result<Format>(p, work, unit.row, unit.channel, values, top, sum);
}

// After the warps have written what they found. All threads of the block call it.
template <class Format, int kHeadDim, int kRows>
KVFUSE_DEVICE void merge_and_write(DecodeShared<Format, kHeadDim, kRows>& shared, const DecodeParams& p,
                                   const DecodeWork& work) {
  const MergeUnit<kHeadDim, kRows> unit;
  block_sync();
  const int slots = work.new_tokens > 0 ? 2 * kDecodeWarps : kDecodeWarps;
  float top = shared.top[0][unit.row];
  for (int slot = 1; slot < slots; ++slot) top = maximum(top, shared.top[slot][unit.row]);
  float values[kPartWidth] = {};
  float sum = 0.0F;
  for (int slot = 0; slot < slots; ++slot) {
    const float factor = exp2_approx(shared.top[slot][unit.row] - top);
    sum += shared.sum[slot][unit.row] * factor;
    KVFUSE_UNROLL
    for (int i = 0; i < kPartWidth; ++i)
      values[i] += shared.values[slot][unit.row][unit.channel + i] * factor;
  }
  if (work.active_splits == 1) {
    if (unit.part == 0) write_result<Format>(p, work, unit.row, unit.channel, values, top, sum);
    return;
  }

  const DecodeWorkspace workspace{std::int64_t{gridDim.z} * gridDim.y, p.options.splits, kRows, kHeadDim};
  const std::int64_t tile = std::int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  char* const base = static_cast<char*>(p.options.workspace);
  if (unit.part == 0) {
    char* const row = base + workspace.row_offset(tile, work.split, unit.row);
    store16(row + unit.channel * 4, pack_floats(values[0], values[1], values[2], values[3]));
    if (unit.channel == 0) store16(row + kHeadDim * 4, pack_floats(top, sum, 0.0F, 0.0F));
  }
  block_sync();
  const bool last = block_sync_or(threadIdx.x == 0 && arrive(reinterpret_cast<int*>(base) + tile,
                                                             work.active_splits) == work.active_splits - 1);
  if (last)
    merge_splits(shared, p, work, base + workspace.row_offset(tile, 0, 0),
                 workspace.row_offset(tile, 1, 0) - workspace.row_offset(tile, 0, 0));
}

}  // namespace kvfuse::cuda
