#include "csrc/roofline/predictor.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "csrc/roofline/check.h"
#include "csrc/roofline/cost.h"

namespace kvfuse::roofline {
namespace {

AttentionRate attention_of(const ModelShape& model, const Pass& pass, const KvStorage& kv) {
  return {.kv = kv.precision,
          .batch = pass.batch,
          .n_head = model.n_head,
          .n_kv_head = model.n_kv_head,
          .head_dim = model.head_dim,
          .query_tokens = pass.tokens,
          .kv_len = pass.seen()};
}

bool is_decode(const AttentionRate& a) { return a.query_tokens == 1; }

double size_of(const AttentionRate& a) { return is_decode(a) ? attention_bytes(a) : attention_flops(a); }

}  // namespace

Predictor::Predictor(const Calibration& calibration) : calibration_(calibration) {
  check_calibration(calibration_);
  for (const ProductRate& p : calibration_.products)
    products_[p.precision][{p.in, p.out}].add(p.rows, p.seconds);
  for (const ProductRate& p : calibration_.step_products) {
    step_products_[p.precision][{p.in, p.out}].add(p.rows, p.seconds);
    most_step_rows_ = std::max(most_step_rows_, p.rows);
  }
  for (const AttentionRate& a : calibration_.attentions)
    attentions_[{a.kv, is_decode(a)}].add(size_of(a), size_of(a) / a.seconds);
}

double Predictor::product_seconds(Precision precision, std::int64_t rows, std::int64_t in, std::int64_t out,
                                  bool step) const {
  check_range("rows", rows, 1, INT64_MAX);
  check_range("in", in, 1, INT64_MAX);
  check_range("out", out, 1, INT64_MAX);
  const bool has_step = step && rows <= most_step_rows_ && step_products_.contains(precision);
  const Products& all = has_step ? step_products_ : products_;
  const auto of_precision = all.find(precision);
  if (of_precision == all.end())
    throw std::invalid_argument("roofline: calibration of " + calibration_.machine +
                                ": expected products in " + std::string(precision_name(precision)) +
                                ", got none");
  const auto measured = of_precision->second.find({in, out});
  if (measured != of_precision->second.end()) return measured->second.seconds(rows);

  const auto work = [rows](std::int64_t inputs, std::int64_t outputs) {
    return static_cast<double>(inputs) * static_cast<double>(outputs) * static_cast<double>(rows);
  };
  LogLine rates;  // multiply-adds a second
  for (const auto& [shape, line] : of_precision->second) {
    const double of_shape = work(shape.first, shape.second);
    rates.add(of_shape, of_shape / line.seconds(rows));
  }
  return work(in, out) / rates.at(work(in, out));
}

double Predictor::attention_seconds(const AttentionRate& wanted, Precision arithmetic) const {
  const auto measured = attentions_.find({wanted.kv, is_decode(wanted)});
  if (measured != attentions_.end()) return size_of(wanted) / measured->second.at(size_of(wanted));
  const Cost cost{.flops = attention_flops(wanted), .bytes = attention_bytes(wanted)};
  return shortest_ms(cost, roofs(calibration_, arithmetic)) / 1e3;
}

double Predictor::products_seconds(const ModelShape& model, const Pass& pass, Precision dtype) const {
  const std::int64_t rows = pass.batch * pass.tokens;
  const bool step = pass.past > 0 && pass.tokens == 1;
  const auto product = [&](std::int64_t in, std::int64_t out) {
    return product_seconds(dtype, rows, in, out, step);
  };
  const auto layers = static_cast<double>(model.n_layer);
  const auto owning = static_cast<double>(model.owning_layers());
  const std::int64_t query = model.query_width();
  const double gates = model.architecture == Architecture::kLlama ? 1 : 0;
  double seconds = owning * product(model.n_embd, query + 2 * model.kv_width()) +
                   layers * (product(query, model.n_embd) + (1 + gates) * product(model.n_embd, model.d_ff) +
                             product(model.d_ff, model.n_embd));
  if (model.borrowing_layers > 0) seconds += (layers - owning) * product(model.n_embd, query);
  if (model.vocab_size > 0 && pass.scored > 0)
    seconds += product_seconds(dtype, pass.batch * pass.scored, model.n_embd, model.vocab_size, step);
  return seconds;
}

double Predictor::elementwise_seconds(const ModelShape& model, const Pass& pass, Precision dtype) const {
  constexpr std::array kElementwise = {Op::kEmbedding, Op::kFfnAct, Op::kNorm, Op::kPosition, Op::kResidual};
  const OperatorCosts costs = operator_costs(model, pass, all_in(dtype));
  double bytes = 0;
  for (const Op op : kElementwise) bytes += costs[index_of(op)].activation_bytes;
  return bytes / calibration_.elementwise_bytes_per_s;
}

TimeParts Predictor::pass(const ModelShape& model, const Pass& pass, Precision dtype,
                          const KvStorage& kv) const {
  check_model(model);
  check_pass(pass);
  const double attention_s = attention_seconds(attention_of(model, pass, kv), dtype);
  return {.products_ms = 1e3 * products_seconds(model, pass, dtype),
          .attention_ms = 1e3 * static_cast<double>(model.n_layer) * attention_s,
          .elementwise_ms = 1e3 * elementwise_seconds(model, pass, dtype),
          .overhead_ms = 1e3 * calibration_.pass_overhead_s};
}

TimeParts Predictor::generation(const ModelShape& model, bool cached, std::int64_t batch,
                                std::int64_t prompt_length, std::int64_t new_tokens, Precision dtype,
                                const KvStorage& kv) const {
  check_range("prompt_length", prompt_length, 1, 1 << 26);
  check_range("new_tokens", new_tokens, 1, 1 << 17);
  TimeParts total;
  for (std::int64_t i = 0; i < new_tokens; ++i) {
    const std::int64_t length = prompt_length + i;  // tokens that the next one is predicted from
    const Pass one = cached && i > 0 ? Pass{.batch = batch, .past = length - 1, .tokens = 1}
                                     : Pass{.batch = batch, .past = 0, .tokens = length};
    const TimeParts parts = pass(model, one, dtype, kv);
    total.products_ms += parts.products_ms;
    total.attention_ms += parts.attention_ms;
    total.elementwise_ms += parts.elementwise_ms;
    total.overhead_ms += parts.overhead_ms;
  }
  return total;
}

}  // namespace kvfuse::roofline
