#include "csrc/roofline/operators.h"

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

constexpr std::array<std::string_view, kOps> kNames = {
    "embedding", "q_proj",   "k_proj",   "v_proj",   "attn_qk", "attn_softmax",
    "attn_av",   "o_proj",   "ffn_gate", "ffn_up",   "ffn_act", "ffn_down",
    "norm",      "position", "residual", "kv_cache", "lm_head"};

// Operations an element, counting an exponential, a tanh and a division as one each.
constexpr double kSoftmaxFlops = 5;    // scale, less the maximum, exp, sum, divide
constexpr double kGeluFlops = 9;       // 0.5 x (1 + tanh(c (x + 0.044715 x^3)))
constexpr double kGatedSiluFlops = 5;  // x / (1 + exp(-x)) * gate, the sign too
constexpr double kLayerNormFlops = 7;  // mean, less it, square, sum, times 1/deviation, weight, bias
constexpr double kRmsNormFlops = 4;    // square, sum, times 1/root, weight
constexpr double kRotaryFlops = 3;     // 4 products and 2 sums a pair
constexpr double kQuantizeFlops = 2;   // times 1/scale, round

// What every formula needs, as doubles: products of sizes leave 64-bit integers behind.
struct Sizes {
  double layers, owning, n_embd, query, kv, d_ff, vocab, heads, head_dim, bias;
  double batch, rows, scored, visible_pairs, all_pairs;
  bool gpt2;
};

Sizes sizes_of(const ModelShape& model, const Pass& pass) {
  const auto d = [](std::int64_t value) { return static_cast<double>(value); };
  const double tokens = d(pass.tokens);
  return {.layers = d(model.n_layer),
          .owning = d(model.owning_layers()),
          .n_embd = d(model.n_embd),
          .query = d(model.query_width()),
          .kv = d(model.kv_width()),
          .d_ff = d(model.d_ff),
          .vocab = d(model.vocab_size),
          .heads = d(model.n_head),
          .head_dim = d(model.head_dim),
          .bias = model.bias ? 1.0 : 0.0,
          .batch = d(pass.batch),
          .rows = d(pass.batch) * tokens,
          .scored = d(pass.batch) * d(pass.scored),
          // New token i sees past + i + 1 tokens.
          .visible_pairs = d(pass.batch) * (tokens * d(pass.past) + tokens * (tokens + 1) / 2),
          .all_pairs = d(pass.batch) * tokens * d(pass.seen()),
          .gpt2 = model.architecture == Architecture::kGpt2};
}

// A linear layer's weights as [outputs, inputs], in how many layers, and the rows it runs over.
struct Linear {
  double layers, outputs;
  std::int64_t inputs;
  double rows;
};

Linear linear_of(Op op, const ModelShape& model, const Sizes& s) {
  switch (op) {
    case Op::kQProj:
      return {s.layers, s.query, model.n_embd, s.rows};
    case Op::kKProj:
    case Op::kVProj:
      return {s.owning, s.kv, model.n_embd, s.rows};
    case Op::kOProj:
      return {s.layers, s.n_embd, model.query_width(), s.rows};
    case Op::kFfnGate:
      return {s.gpt2 ? 0 : s.layers, s.d_ff, model.n_embd, s.rows};
    case Op::kFfnUp:
      return {s.layers, s.d_ff, model.n_embd, s.rows};
    case Op::kFfnDown:
      return {s.layers, s.n_embd, model.d_ff, s.rows};
    case Op::kLmHead:
      return {s.vocab > 0 && s.scored > 0 ? 1.0 : 0.0, s.vocab, model.n_embd, s.scored};
    default:
      return {0, 0, 0, 0};
  }
}

bool is_linear(Op op) {
  switch (op) {
    case Op::kQProj:
    case Op::kKProj:
    case Op::kVProj:
    case Op::kOProj:
    case Op::kFfnGate:
    case Op::kFfnUp:
    case Op::kFfnDown:
    case Op::kLmHead:
      return true;
    default:
      return false;
  }
}

double products(Op op, const ModelShape& model, const Sizes& s) {
  if (op == Op::kAttnQk || op == Op::kAttnAv) return 2 * s.visible_pairs * s.layers * s.query;
  if (!is_linear(op)) return 0;
  const Linear linear = linear_of(op, model, s);
  return 2 * linear.layers * linear.rows * linear.outputs * static_cast<double>(linear.inputs);
}

double other_flops(Op op, const ModelShape& model, const Sizes& s, const OperatorPrecisions& precisions) {
  switch (op) {
    case Op::kAttnSoftmax:
      return kSoftmaxFlops * s.layers * s.visible_pairs * s.heads;
    case Op::kFfnAct:
      return (s.gpt2 ? kGeluFlops : kGatedSiluFlops) * s.layers * s.rows * s.d_ff;
    case Op::kNorm:
      return (s.gpt2 ? kLayerNormFlops : kRmsNormFlops) * s.n_embd * (2 * s.layers * s.rows + s.scored);
    case Op::kPosition:
      return s.gpt2 ? s.rows * s.n_embd : kRotaryFlops * s.rows * (s.layers * s.query + s.owning * s.kv);
    case Op::kResidual:
      return 2 * s.layers * s.rows * s.n_embd;
    case Op::kKvCache: {
      const bool quantised = precision_info(precisions.at(op)).payload_bits < 16;
      return quantised ? kQuantizeFlops * 2 * s.owning * s.rows * s.kv : 0;
    }
    case Op::kLmHead:
      return 0;  // no bias
    default: {
      const Linear linear = linear_of(op, model, s);
      return s.bias * linear.layers * linear.rows * linear.outputs;
    }
  }
}

double weight_bytes(Op op, const ModelShape& model, const Sizes& s, const OperatorPrecisions& p) {
  const auto bytes = [&](double rows, std::int64_t columns) {
    return matrix_bytes(p.at(op), rows, columns, p.accounting);
  };
  switch (op) {
    case Op::kEmbedding:
      return s.vocab > 0 ? bytes(s.rows, model.n_embd) : 0;  // the rows looked up
    case Op::kPosition:
      return s.gpt2 && model.block_size > 0 ? bytes(s.rows, model.n_embd) : 0;
    case Op::kNorm:
      return (2 * s.layers + (s.scored > 0 ? 1 : 0)) * bytes(s.gpt2 ? 1 + s.bias : 1, model.n_embd);
    default:
      break;
  }
  if (!is_linear(op)) return 0;
  const Linear linear = linear_of(op, model, s);
  const double with_bias = op == Op::kLmHead ? 0 : s.bias;
  return linear.layers * (bytes(linear.outputs, linear.inputs) +
                          with_bias * matrix_bytes(p.activations, linear.outputs, 1, p.accounting));
}

// Elements that are read and written beside weights and cache.
double activation_elements(Op op, const ModelShape& model, const Sizes& s, const Pass& pass) {
  const double scores = pass.fused_attention ? 0 : s.layers * s.heads * s.all_pairs;
  switch (op) {
    case Op::kEmbedding:
      return s.vocab > 0 ? s.rows * s.n_embd : 0;
    case Op::kAttnQk:
      return s.layers * s.rows * s.query + scores;
    case Op::kAttnSoftmax:
      return 2 * scores;
    case Op::kAttnAv:
      return s.layers * s.rows * s.query + scores;
    case Op::kFfnAct:
      return s.layers * s.rows * s.d_ff * (s.gpt2 ? 2 : 3);
    case Op::kNorm:
      return 2 * s.n_embd * (2 * s.layers * s.rows + s.scored);
    case Op::kPosition:
      return 2 * (s.gpt2 ? s.rows * s.n_embd : s.rows * (s.layers * s.query + s.owning * s.kv));
    case Op::kResidual:
      return 3 * 2 * s.layers * s.rows * s.n_embd;
    case Op::kKvCache:
      return 2 * s.owning * s.rows * s.kv;
    default: {
      const Linear linear = linear_of(op, model, s);
      return linear.layers * linear.rows * (static_cast<double>(linear.inputs) + linear.outputs);
    }
  }
}

// Every layer reads K and V that it borrows, too; only owners write.
double cache_bytes(Op op, const ModelShape& model, const Sizes& s, const Pass& pass,
                   const OperatorPrecisions& p) {
  switch (op) {
    case Op::kAttnQk:
    case Op::kAttnAv:
      return s.layers * s.batch *
             kv_layer_bytes(model, static_cast<double>(pass.seen()), p.kv(), p.accounting);
    case Op::kKvCache:
      return 2 * s.owning * s.batch *
             kv_layer_bytes(model, static_cast<double>(pass.tokens), p.kv(), p.accounting);
    default:
      return 0;
  }
}

}  // namespace

std::string_view op_name(Op op) { return kNames[index_of(op)]; }

std::vector<std::string> op_names() { return {kNames.begin(), kNames.end()}; }

void check_pass(const Pass& pass) {
  check_range("batch", pass.batch, 1, kMostBatch);
  check_range("past", pass.past, 0, kMostTokens);
  check_range("tokens", pass.tokens, 1, kMostTokens);
  check_range("scored", pass.scored, 0, pass.tokens);
}

OperatorPrecisions all_in(Precision precision) {
  OperatorPrecisions result;
  result.of.fill(precision);
  result.activations = activation_precision(precision);
  return result;
}

double product_flops(Op op, const ModelShape& model, const Pass& pass) {
  return products(op, model, sizes_of(model, pass));
}

OperatorCosts operator_costs(const ModelShape& model, const Pass& pass,
                             const OperatorPrecisions& precisions) {
  const Sizes sizes = sizes_of(model, pass);
  const double activation = matrix_bytes(precisions.activations, 1, 1, precisions.accounting);
  OperatorCosts costs;
  for (const Op op : kAllOps)
    costs[index_of(op)] = {.product_flops = products(op, model, sizes),
                           .other_flops = other_flops(op, model, sizes, precisions),
                           .weight_bytes = weight_bytes(op, model, sizes, precisions),
                           .cache_bytes = cache_bytes(op, model, sizes, pass, precisions),
                           .activation_bytes = activation * activation_elements(op, model, sizes, pass)};
  return costs;
}

}  // namespace kvfuse::roofline
