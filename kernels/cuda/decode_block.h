// What the blocks of decode attention are given to do, and the shared memory they do it in.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cache_rows.h"
#include "kernels/cuda/device/block.h"

namespace kvfuse::cuda {

inline constexpr int kDecodeThreads =
    128;  // four warps: the merges count on a thread for every fourth channel
inline constexpr int kDecodeWarps = kDecodeThreads / 32;
inline constexpr int kMostSplits = 128;   // so many partial results are merged by one block
inline constexpr int kSplitTokens = 128;  // a split is a multiple: a whole step of the block for every format

KVFUSE_DEVICE int minimum(int a, int b) { return a < b ? a : b; }

// Query rows that a block takes through one pass over the cache: of those that share a kv head.
constexpr int rows_per_tile(std::int64_t query_rows) { return query_rows == 1 ? 1 : 4; }
constexpr std::int64_t row_tiles(std::int64_t query_rows) {
  return (query_rows + rows_per_tile(query_rows) - 1) / rows_per_tile(query_rows);
}

struct DecodeParams {
  AttentionParams attention;
  DecodeOptions options;
  std::int32_t group;      // query heads that share a kv head
  std::int32_t row_tiles;  // of a kv head's query rows
  float log2_scale;        // softmax_scale * log2(e)
};

// One block's share: query rows [first_row, first_row + rows) of a kv head over the tokens [begin, end) that
// were in the cache before the call, and over the new ones if it is the head's last active split.
struct DecodeWork {
  int b;
  int kv_head;
  int tile;
  int split;
  int first_row;
  int rows;
  int old_tokens;
  int total_tokens;
  int active_splits;  // decided by the length alone
  int begin;
  int end;
  int new_tokens;  // that this block attends to
  int q_len;
  bool valid;  // the length is possible

  // Tokens of the sequence that query row `row` of the tile sees: those that are not later than itself.
  KVFUSE_DEVICE int visible(int row) const { return visible_to_all() + (first_row + row) % q_len; }
  KVFUSE_DEVICE int visible_to_all() const { return total_tokens - q_len + 1; }
};

KVFUSE_DEVICE DecodeWork find_work(const DecodeParams& p, int rows_per_tile) {
  const AttentionParams& a = p.attention;
  DecodeWork work{};
  work.b = static_cast<int>(blockIdx.z);
  work.kv_head = static_cast<int>(blockIdx.y) / p.row_tiles;
  work.tile = static_cast<int>(blockIdx.y) % p.row_tiles;
  work.split = static_cast<int>(blockIdx.x);
  work.first_row = work.tile * rows_per_tile;
  work.rows = minimum(rows_per_tile, p.group * static_cast<int>(a.q_len) - work.first_row);
  work.q_len = static_cast<int>(a.q_len);
  const std::int64_t old_tokens = a.cache_seqlens[work.b];
  const std::int64_t appended = a.k_new.data != nullptr ? a.q_len : 0;
  work.valid = old_tokens >= 0 && old_tokens + appended <= a.cache.capacity;
  if (!work.valid) return work;
  work.old_tokens = static_cast<int>(old_tokens);
  work.total_tokens = static_cast<int>(old_tokens + appended);
  const int steps = (work.old_tokens + kSplitTokens - 1) / kSplitTokens;
  const int splits = static_cast<int>(p.options.splits);
  const int tokens = maximum((steps + splits - 1) / splits, 1) * kSplitTokens;  // of a split
  work.active_splits = maximum((work.old_tokens + tokens - 1) / tokens, 1);
  work.begin = minimum(work.split * tokens, work.old_tokens);
  work.end = minimum(work.begin + tokens, work.old_tokens);
  work.new_tokens = work.split == work.active_splits - 1 ? static_cast<int>(appended) : 0;
  return work;
}

// Where query row `row` of a tile stands in q and out.
struct QueryPlace {
  int head;
  int token;
};

KVFUSE_DEVICE QueryPlace place_of(const DecodeParams& p, const DecodeWork& work, int row) {
  const int q_len = static_cast<int>(p.attention.q_len);
  return {work.kv_head * p.group + (work.first_row + row) / q_len, (work.first_row + row) % q_len};
}

template <class Format, int kHeadDim, int kRows>
struct DecodeShared {
  using Layout = RowLayout<Format, kHeadDim>;

  DecodeWork work;  // here rather than in registers while the tokens pass

  alignas(16) typename Format::Query query[kRows][Layout::kLanes];
  float query_scale[kRows];

  // What each warp found in the cache, then what each found in the new rows: weights relative to 2^top.
  alignas(16) float values[2 * kDecodeWarps][kRows][kHeadDim];
  float top[2 * kDecodeWarps][kRows];
  float sum[2 * kDecodeWarps][kRows];

  // The merge of the splits: what each split found, and what each group of threads makes of its splits.
  float split_top[kRows][kMostSplits];
  float split_sum[kRows][kMostSplits];
  alignas(16) float part_values[kDecodeThreads][kPartWidth];
  float part_sum[kDecodeThreads];
};

}  // namespace kvfuse::cuda
