// The attention operators, written once for every backend: check, guard, allocate, launch.
//
// A Backend says what differs:
//   kAlignment                                 bytes that rows of q, k and v are aligned to
//   Guard(device)                              makes the device current while it lives
//   check_cache_memory(op, cache)              rules on the memory of the cache, if it has any
//   check_lengths(op, cache, appended)         see check.h
//   workspace_bytes(q, k_cache)                what decode writes to a workspace
//   append, decode, prefill (op, params, ...)  launch
#pragma once

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "csrc/ops/attention_params.h"
#include "csrc/ops/check.h"
#include "csrc/ops/result.h"

namespace kvfuse::ops {

template <typename Backend>
struct AttentionOps {
  using MaybeTensor = std::optional<at::Tensor>;

  static at::Tensor decode_workspace(const at::Tensor& q, const at::Tensor& k_cache) {
    check_decode_workspace(q, k_cache);
    const typename Backend::Guard guard(q.device());
    return at::zeros({Backend::workspace_bytes(q, k_cache)}, q.options().dtype(at::kByte));
  }

  static void kv_append(const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache,
                        const at::Tensor& v_cache, const at::Tensor& cache_seqlens,
                        const MaybeTensor& k_scale, const MaybeTensor& v_scale) {
    const CacheTensors cache{k_cache, v_cache, cache_seqlens, k_scale, v_scale};
    check_kv_append(k, v, cache);
    Backend::check_cache_memory(kKvAppend, cache);
    check_separate_memory(kKvAppend, cache, {{"k", k}, {"v", v}});
    const typename Backend::Guard guard(k.device());
    Backend::check_lengths(kKvAppend, cache, k.size(2));
    if (k.numel() == 0) return;
    const at::Tensor k_rows = with_aligned_rows(k, Backend::kAlignment);
    const at::Tensor v_rows = with_aligned_rows(v, Backend::kAlignment);
    Backend::append(kKvAppend, append_params(k_rows, v_rows, cache));
  }

  static at::Tensor decode_attention(const at::Tensor& q, const at::Tensor& k_cache,
                                     const at::Tensor& v_cache, const at::Tensor& cache_seqlens,
                                     const MaybeTensor& k_scale, const MaybeTensor& v_scale,
                                     std::optional<double> softmax_scale, const MaybeTensor& workspace,
                                     const MaybeTensor& softmax_lse) {
    const CacheTensors cache{k_cache, v_cache, cache_seqlens, k_scale, v_scale};
    const DecodeBuffers buffers{workspace, softmax_lse};
    check_decode_attention(q, cache, softmax_scale, buffers);
    Backend::check_cache_memory(kDecodeAttention, cache);
    const typename Backend::Guard guard(q.device());
    check_buffer_memory(kDecodeAttention, buffers, q, cache, {{"q", q}});
    Backend::check_lengths(kDecodeAttention, cache, 0);
    at::Tensor out = empty_attention_result(q);
    if (q.numel() == 0) return out;
    const at::Tensor q_rows = with_aligned_rows(q, Backend::kAlignment);
    AttentionParams params = attention_params(q_rows, out, cache, softmax_scale);
    params.softmax_lse = softmax_lse_of(buffers);
    Backend::decode(kDecodeAttention, params, workspace);
    return out;
  }

  static at::Tensor append_decode_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                            const at::Tensor& k_cache, const at::Tensor& v_cache,
                                            const at::Tensor& cache_seqlens, const MaybeTensor& k_scale,
                                            const MaybeTensor& v_scale, std::optional<double> softmax_scale,
                                            const MaybeTensor& workspace, const MaybeTensor& softmax_lse) {
    const auto launch = [&](const AttentionParams& params) {
      Backend::decode(kAppendDecodeAttention, params, workspace);
    };
    return append_attention(kAppendDecodeAttention, q, k, v,
                            {k_cache, v_cache, cache_seqlens, k_scale, v_scale}, softmax_scale,
                            {workspace, softmax_lse}, launch);
  }

  static at::Tensor prefill_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& k_cache, const at::Tensor& v_cache,
                                      const at::Tensor& cache_seqlens, const MaybeTensor& k_scale,
                                      const MaybeTensor& v_scale, std::optional<double> softmax_scale) {
    const auto launch = [](const AttentionParams& params) { Backend::prefill(kPrefillAttention, params); };
    return append_attention(kPrefillAttention, q, k, v, {k_cache, v_cache, cache_seqlens, k_scale, v_scale},
                            softmax_scale, {std::nullopt, std::nullopt}, launch);
  }

  static void register_in(torch::Library& m) {
    m.impl("decode_workspace", &decode_workspace);
    m.impl("kv_append", &kv_append);
    m.impl("decode_attention", &decode_attention);
    m.impl("append_decode_attention", &append_decode_attention);
    m.impl("prefill_attention", &prefill_attention);
  }

 private:
  // Where the buffers lie, and that they overlap nothing.
  static void check_buffer_memory(const char* op, const DecodeBuffers& buffers, const at::Tensor& q,
                                  const CacheTensors& cache, std::initializer_list<NamedTensor> inputs) {
    if (is_given(buffers.workspace))
      check_workspace_memory(op, *buffers.workspace, Backend::workspace_bytes(q, cache.k_cache));
    check_separate_buffers(op, buffers, cache, inputs);
  }

  static float* softmax_lse_of(const DecodeBuffers& buffers) {
    return is_given(buffers.softmax_lse) ? buffers.softmax_lse->mutable_data_ptr<float>() : nullptr;
  }

  template <typename Launch>
  static at::Tensor append_attention(const char* op, const at::Tensor& q, const at::Tensor& k,
                                     const at::Tensor& v, const CacheTensors& cache,
                                     std::optional<double> softmax_scale, const DecodeBuffers& buffers,
                                     const Launch& launch) {
    check_append_attention(op, q, k, v, cache, softmax_scale, buffers);
    Backend::check_cache_memory(op, cache);
    check_separate_memory(op, cache, {{"q", q}, {"k", k}, {"v", v}});
    const typename Backend::Guard guard(q.device());
    check_buffer_memory(op, buffers, q, cache, {{"q", q}, {"k", k}, {"v", v}});
    Backend::check_lengths(op, cache, q.size(2));
    at::Tensor out = empty_attention_result(q);
    if (q.numel() == 0) return out;
    const at::Tensor q_rows = with_aligned_rows(q, Backend::kAlignment);
    const at::Tensor k_rows = with_aligned_rows(k, Backend::kAlignment);
    const at::Tensor v_rows = with_aligned_rows(v, Backend::kAlignment);
    AttentionParams params = attention_params(q_rows, out, cache, softmax_scale);
    params.k_new = token_view(k_rows);
    params.v_new = token_view(v_rows);
    params.softmax_lse = softmax_lse_of(buffers);
    launch(params);
    return out;
  }
};

}  // namespace kvfuse::ops
