// The 17 operators of a transformer's forward pass: operations and bytes of each, for any pass from a prompt
// to a single new token.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/roofline/model_shape.h"
#include "csrc/roofline/precision.h"

namespace kvfuse::roofline {

enum class Op {
  kEmbedding,
  kQProj,
  kKProj,
  kVProj,
  kAttnQk,
  kAttnSoftmax,
  kAttnAv,
  kOProj,
  kFfnGate,
  kFfnUp,
  kFfnAct,
  kFfnDown,
  kNorm,
  kPosition,
  kResidual,
  kKvCache,
  kLmHead
};
inline constexpr std::size_t kOps = 17;
inline constexpr std::array<Op, kOps> kAllOps = {
    Op::kEmbedding, Op::kQProj,    Op::kKProj,    Op::kVProj,   Op::kAttnQk, Op::kAttnSoftmax,
    Op::kAttnAv,    Op::kOProj,    Op::kFfnGate,  Op::kFfnUp,   Op::kFfnAct, Op::kFfnDown,
    Op::kNorm,      Op::kPosition, Op::kResidual, Op::kKvCache, Op::kLmHead};
std::string_view op_name(Op op);
std::vector<std::string> op_names();
constexpr std::size_t index_of(Op op) { return static_cast<std::size_t>(op); }

// A pass over `tokens` new tokens a sequence after `past` earlier ones.
struct Pass {
  std::int64_t batch = 1;
  std::int64_t past = 0;
  std::int64_t tokens = 1;
  std::int64_t scored = 1;  // tokens a sequence that logits are made for
  // Whether attention keeps its scores on the chip; otherwise they are written and read, for every pair of
  // a new and a visible or hidden token.
  bool fused_attention = true;

  std::int64_t seen() const { return past + tokens; }
};
// Throws std::invalid_argument: sizes out of range, more tokens scored than there are.
void check_pass(const Pass& pass);

// The format of each operator: of its weights, where it has some, and of its arithmetic. That of kKvCache is
// how K and V are kept.
struct OperatorPrecisions {
  std::array<Precision, kOps> of = [] {
    std::array<Precision, kOps> all{};
    all.fill(Precision::kFp16);
    return all;
  }();
  Precision activations = Precision::kFp16;
  std::int64_t kv_recent_window = 0;  // see KvStorage
  Accounting accounting = Accounting::kComplete;

  Precision at(Op op) const { return of[index_of(op)]; }
  KvStorage kv() const { return {.precision = at(Op::kKvCache), .recent_window = kv_recent_window}; }
};
OperatorPrecisions all_in(Precision precision);

// Over all layers.
struct OperatorCost {
  double product_flops = 0;  // of matrix products: 2 a multiply-add; causal attention counts visible pairs
  double other_flops = 0;    // element by element
  double weight_bytes = 0;
  // Of K and V read or written. That a token which leaves the recent window is written again is not counted.
  double cache_bytes = 0;
  double activation_bytes = 0;  // inputs read and results written

  double flops() const { return product_flops + other_flops; }
  double bytes() const { return weight_bytes + cache_bytes + activation_bytes; }
};

// The one count of matrix products: csrc/roofline/cost sums it too. Unchecked.
double product_flops(Op op, const ModelShape& model, const Pass& pass);

using OperatorCosts = std::array<OperatorCost, kOps>;
// The caller has checked model and pass.
OperatorCosts operator_costs(const ModelShape& model, const Pass& pass, const OperatorPrecisions& precisions);

}  // namespace kvfuse::roofline
