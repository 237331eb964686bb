#include "csrc/ops/attention_gradient.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

namespace kvfuse::ops {
namespace {

at::Tensor positions(const c10::SymInt& count, const at::Tensor& like) {
  return at::arange(count, like.options().dtype(at::kLong));
}

// [batch, heads, q_len, head_dim] -> float32 [batch, kv_heads, heads / kv_heads * q_len, head_dim]: the
// queries of a group in one matrix, since they share keys and values.
at::Tensor by_kv_head(const at::Tensor& x, const c10::SymInt& kv_heads) {
  const c10::SymInt rows = x.sym_size(1) / kv_heads * x.sym_size(2);
  return x.reshape_symint({x.sym_size(0), kv_heads, rows, x.sym_size(3)}).to(at::kFloat);
}

// The prefix and, behind each sequence's own part of it, the appended rows, whose places `index` gives.
at::Tensor attended_rows(const at::Tensor& prefix, const at::Tensor& appended, const at::Tensor& first,
                         const at::Tensor& index) {
  // What lies past a length may be NaN, which a probability of zero would not hide.
  const at::Tensor unused = positions(prefix.sym_size(2), prefix).ge(first).unsqueeze(1).unsqueeze(-1);
  const at::Tensor room = at::cat({prefix.masked_fill(unused, 0), at::zeros_like(appended)}, 2);
  return room.scatter(2, index, appended).to(at::kFloat);
}

}  // namespace

AttentionGradients attention_gradients(const SavedAttention& saved, const at::Tensor& grad_out) {
  const c10::SymInt kv_heads = saved.k.sym_size(1);
  const at::Tensor first = saved.lengths.to(at::kLong).unsqueeze(1);            // [batch, 1]
  const at::Tensor query_at = first + positions(saved.q.sym_size(2), saved.q);  // [batch, q_len]
  const at::Tensor index = query_at.unsqueeze(1).unsqueeze(-1).expand_symint(saved.k.sym_sizes());
  const at::Tensor keys = attended_rows(saved.k_prefix, saved.k, first, index);
  const at::Tensor values = attended_rows(saved.v_prefix, saved.v, first, index);
  const at::Tensor queries = by_kv_head(saved.q, kv_heads);
  const at::Tensor grad = by_kv_head(grad_out, kv_heads);

  const at::Tensor hidden = positions(keys.sym_size(2), keys).gt(query_at.unsqueeze(-1));
  const at::Tensor scores = at::matmul(queries, keys.mT()) * saved.softmax_scale;
  const c10::SymInt group = saved.q.sym_size(1) / kv_heads;
  const at::Tensor p =
      scores.reshape_symint({saved.q.sym_size(0), kv_heads, group, saved.q.sym_size(2), keys.sym_size(2)})
          .masked_fill(hidden.unsqueeze(1).unsqueeze(1), -std::numeric_limits<double>::infinity())
          .softmax(-1)
          .reshape_symint(scores.sym_sizes());

  const at::Tensor p_grad = at::matmul(grad, values.mT());
  const at::Tensor scores_grad = p * (p_grad - (p * p_grad).sum(-1, /*keepdim=*/true)) * saved.softmax_scale;
  const auto appended = [&](const at::Tensor& rows) {
    return rows.gather(2, index).to(saved.k.scalar_type());
  };
  return {.q = at::matmul(scores_grad, keys).reshape_symint(saved.q.sym_sizes()).to(saved.q.scalar_type()),
          .k = appended(at::matmul(scores_grad.mT(), queries)),
          .v = appended(at::matmul(p.mT(), grad))};
}

}  // namespace kvfuse::ops
