// Attention over a KV cache: parameters shared by every backend, and the CPU entry points.
//
// Shapes: q and out [batch, heads, q_len, head_dim]; k_new and v_new [batch, kv_heads, q_len, head_dim].
// heads is a multiple of kv_heads; query head h reads cache head h / (heads / kv_heads).
// Query token t of sequence b sees the first total_b - q_len + t + 1 cached tokens (causal, aligned to the
// end), where total_b counts the tokens that the call itself appends. Rows past total_b are never read.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvfuse {

// [batch, heads, tokens, head_dim] with a contiguous last dimension; strides count elements.
template <typename Pointer>
struct TokenView {
  Pointer data = nullptr;
  DType dtype = DType::kFloat32;  // never int8
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
};
using ConstTokenView = TokenView<const void*>;
using MutableTokenView = TokenView<void*>;

// One layer's cache. An int8 cache holds round(x / scale) in [-127, 127] with scale = absmax / 127 of its
// row.
struct CacheView {
  void* k = nullptr;         // [batch, kv_heads, capacity, head_dim], contiguous
  void* v = nullptr;         // same
  float* k_scale = nullptr;  // [batch, kv_heads, capacity], contiguous; null unless dtype is int8
  float* v_scale = nullptr;  // same
  DType dtype = DType::kFloat32;
  std::int64_t batch = 0;
  std::int64_t kv_heads = 0;
  std::int64_t capacity = 0;
  std::int64_t head_dim = 0;
};

// The caller guarantees 0 <= cache_seqlens[b] and cache_seqlens[b] + appended tokens <= capacity.
struct AttentionParams {
  ConstTokenView q;
  ConstTokenView k_new;  // data is null: nothing is appended and cache_seqlens counts every visible token
  ConstTokenView v_new;  // null together with k_new
  MutableTokenView out;
  CacheView cache;
  const std::int32_t* cache_seqlens = nullptr;  // [batch]: tokens in the cache before the call
  std::int64_t heads = 0;
  std::int64_t q_len = 0;
  float softmax_scale = 1.0F;
  // decode_attention alone: [batch, heads, q_len], the natural logarithm of each query's sum of exp(score);
  // -infinity where it sees no token. May be null. Results over separate caches are merged by it.
  float* softmax_lse = nullptr;
};

struct AppendParams {
  ConstTokenView k_new;
  ConstTokenView v_new;
  CacheView cache;
  const std::int32_t* cache_seqlens = nullptr;  // [batch]: where the new tokens go
  std::int64_t tokens = 0;
};

namespace cpu {

// Appends (if k_new is given) and attends, for a few query tokens: the work is split over
// (batch, kv head, chunk of the length). head_dim must be in HeadDims. A query that sees no token gets zeros.
void decode_attention(const AttentionParams& params);

// Appends and attends, for many query tokens: the work is split over (batch, head, tile of queries).
void prefill_attention(const AttentionParams& params);

// Writes the new rows into the cache, quantising if the cache is int8.
void kv_append(const AppendParams& params);

}  // namespace cpu
}  // namespace kvfuse
