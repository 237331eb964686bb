// What decode attention takes in beside the cache: the queries, which go to shared memory in the form that
// the format multiplies with, and the new rows, which are appended and attended to. A row each is a warp's
// work.
#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/cuda/decode_block.h"
#include "kernels/cuda/quantise_row.h"

namespace kvfuse::cuda {

// Calls f with a value of the type of q, k, v and out: the cache's own, or any beside int8.
template <class Format, class F>
KVFUSE_DEVICE void with_query_type(DType dtype, F&& f) {
  if constexpr (Format::kScaled)
    with_float_type(dtype, f);
  else
    f(typename Format::Element{});
}

template <class T>
KVFUSE_DEVICE const T* bias_of(const void* biases, int head, int head_dim) {
  return biases == nullptr ? nullptr : static_cast<const T*>(biases) + head * head_dim;
}

// Whether this lane's part of a row lies within the pieces of a query, whose last may be padding.
template <class Format, int kHeadDim>
KVFUSE_DEVICE bool within_pieces() {
  using Layout = RowLayout<Format, kHeadDim>;
  return lane_id() * kPartWidth < Layout::kLanes * Layout::kElements;
}

// Rows of the tile past the last query are zero: they cost nothing but their turn, and are not written.
template <class Format, int kHeadDim, int kRows>
KVFUSE_DEVICE void prepare_query(DecodeShared<Format, kHeadDim, kRows>& shared, const DecodeParams& p,
                                 const DecodeWork& work, int row) {
  const AttentionParams& a = p.attention;
  RowPart part{};
  if (row < work.rows) {
    const QueryPlace place = place_of(p, work, row);
    with_query_type<Format>(a.q.dtype, [&](auto zero) {
      using T = decltype(zero);
      part = read_part(row_of<T>(a.q, work.b, place.head, place.token),
                       bias_of<T>(p.options.q_bias, place.head, kHeadDim), kHeadDim);
    });
  }
  KVFUSE_UNROLL
  for (float& x : part.x) x *= p.log2_scale;
  const float scale = Format::store_query(part, shared.query[row], within_pieces<Format, kHeadDim>());
  if (lane_id() == 0) shared.query_scale[row] = scale;
}

// New row `token` of K or V as the cache holds it. All blocks of a kv head that attend to it compute it
// alike; that of the first row tile writes it.
template <class Format, int kHeadDim>
KVFUSE_DEVICE NewRow append_row(const DecodeWork& work, const CacheView& cache, const ConstTokenView& from,
                                const void* biases, int token, void* cached, float* cached_scale) {
  const std::int64_t position =
      (std::int64_t{work.b} * cache.kv_heads + work.kv_head) * cache.capacity + work.old_tokens + token;
  auto* const target = static_cast<typename Format::Element*>(cached) + position * kHeadDim;
  NewRow row{};
  with_query_type<Format>(from.dtype, [&](auto zero) {
    using T = decltype(zero);
    row.values = read_part(row_of<T>(from, work.b, work.kv_head, token),
                           bias_of<T>(biases, work.kv_head, kHeadDim), kHeadDim);
  });
  if constexpr (Format::kScaled) {
    row = quantise_part(row.values);
    if (work.tile == 0) write_codes(target, row.codes, kHeadDim);
    if (work.tile == 0 && lane_id() == 0) cached_scale[position] = row.scale;
  } else if (work.tile == 0) {
    write_part(target, row.values, kHeadDim);
  }
  return row;
}

// Appends the new rows and attends to them, each warp to every fourth; the last warps first, because the
// first ones have the more of the cache. Leaves the result for the merge.
template <class Format, int kHeadDim, int kRows>
KVFUSE_DEVICE void attend_new_rows(DecodeShared<Format, kHeadDim, kRows>& shared, const DecodeParams& p,
                                   const DecodeWork& work) {
  const AttentionParams& a = p.attention;
  RowPart values[kRows] = {};
  float top[kRows];
  float sum[kRows] = {};
  KVFUSE_UNROLL
  for (float& value : top) value = -FLT_MAX;
  for (int token = kDecodeWarps - 1 - warp_id(); token < work.new_tokens; token += kDecodeWarps) {
    const NewRow k = append_row<Format, kHeadDim>(work, a.cache, a.k_new, p.options.k_bias, token, a.cache.k,
                                                  a.cache.k_scale);
    const NewRow v = append_row<Format, kHeadDim>(work, a.cache, a.v_new, p.options.v_bias, token, a.cache.v,
                                                  a.cache.v_scale);
    KVFUSE_UNROLL
    for (int row = 0; row < kRows; ++row) {
      if (work.old_tokens + token >= work.visible(row)) continue;
      const typename Format::Score part =
          within_pieces<Format, kHeadDim>() ? Format::dot_part(shared.query[row], k) : 0;
      const float score = static_cast<float>(group_sum<32>(part)) * shared.query_scale[row] * k.scale;
      const float shrink = exp2_approx(top[row] - maximum(top[row], score));
      top[row] = maximum(top[row], score);
      const float weight = exp2_approx(score - top[row]);
      sum[row] = sum[row] * shrink + weight;
      KVFUSE_UNROLL
      for (int i = 0; i < kPartWidth; ++i)
        values[row].x[i] = values[row].x[i] * shrink + weight * (v.values.x[i] * v.scale);
    }
  }
  KVFUSE_UNROLL
  for (int row = 0; row < kRows; ++row) {
    const int slot = kDecodeWarps + warp_id();
    if (lane_id() == 0) {
      shared.top[slot][row] = top[row];
      shared.sum[slot][row] = sum[row];
    }
    write_part(shared.values[slot][row], values[row], kHeadDim);
  }
}

}  // namespace kvfuse::cuda
