// Attention over a KV cache on CUDA: entry points. Parameters and shapes are those of kernels/attention.h;
// all pointers are device memory, cache_seqlens too. head_dim is in CudaHeadDims; the cache is int8 or of q's
// dtype; every tensor row starts at a multiple of 16 bytes. What is not supported returns
// cudaErrorInvalidValue. The device cannot throw: a sequence whose length is negative or would exceed the
// capacity leaves the cache as it was and gets NaN for its result and softmax_lse.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/device/platform.h"

namespace kvfuse::cuda {

// Beside AttentionParams: what only the CUDA decode kernel takes.
struct DecodeOptions {
  // decode_workspace_bytes(...) bytes, 16-byte aligned; may be null if splits is 1. Its first int32 counters
  // are zero before the first call, and after each.
  void* workspace = nullptr;
  std::int64_t splits = 1;  // parts of the length that run as blocks of their own; fixed at launch
  const void* q_bias =
      nullptr;  // [heads, head_dim] of q's dtype, added to q before anything else; null: none
  const void* k_bias = nullptr;  // [kv_heads, head_dim]
  const void* v_bias = nullptr;
  bool overlap_previous = false;  // programmatic dependent launch
};

// Parts that fill a card with so many multiprocessors, for sequences of up to `capacity` tokens. query_rows =
// heads / kv_heads * q_len here and below.
std::int64_t decode_splits(std::int64_t batch, std::int64_t kv_heads, std::int64_t query_rows,
                           std::int64_t capacity, int multiprocessors);

std::int64_t decode_workspace_bytes(std::int64_t batch, std::int64_t kv_heads, std::int64_t query_rows,
                                    std::int64_t head_dim, std::int64_t splits);

// Appends (if k_new is given) and attends, for a few query tokens. How the length is cut depends on the
// length and on `splits` alone, and parts are merged in order: the same call gives the same bits.
cudaError_t decode_attention(const AttentionParams& params, const DecodeOptions& options,
                             cudaStream_t stream);

// Appends and attends, for many query tokens.
cudaError_t prefill_attention(const AttentionParams& params, cudaStream_t stream);

// Writes the new rows into the cache, quantising if the cache is int8.
cudaError_t kv_append(const AppendParams& params, cudaStream_t stream);

}  // namespace kvfuse::cuda
