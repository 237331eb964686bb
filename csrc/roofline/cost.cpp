#include "csrc/roofline/cost.h"

#include <algorithm>

#include "csrc/roofline/operators.h"

namespace kvfuse::roofline {

Cost forward_cost(const TransformerShape& shape, std::int64_t batch, std::int64_t past, std::int64_t tokens) {
  // How the width splits into heads changes none of the products.
  ModelShape model = gpt2_shape(shape.n_layer, 1, shape.n_embd, shape.vocab_size, 0);
  model.borrowing_layers = shape.borrowing_layers;
  const Pass pass{.batch = batch, .past = past, .tokens = tokens};
  double flops = 0;
  for (const Op op : kAllOps) flops += product_flops(op, model, pass);
  const auto weights = static_cast<double>(shape.weight_bytes);
  const double cache = static_cast<double>(batch) * static_cast<double>(past + tokens) *
                       static_cast<double>(shape.kv_bytes_per_token);
  return {.flops = flops, .bytes = weights + cache};
}

double shortest_ms(const Cost& cost, const MachineLimits& limits) {
  return 1e3 * std::max(cost.bytes / limits.read_bytes_per_s, cost.flops / limits.matmul_flops_per_s);
}

GenerationCost generation_cost(const TransformerShape& shape, bool cached, std::int64_t batch,
                               std::int64_t prompt_length, std::int64_t new_tokens,
                               const MachineLimits& limits, const SeenTokens& seen) {
  GenerationCost result;
  std::int64_t length = prompt_length;  // tokens that the next one is predicted from
  for (std::int64_t i = 0; i < new_tokens; ++i, ++length) {
    const bool full = length > seen.most;
    if (full) length = seen.keep;
    const bool decode = cached && i > 0 && !(full && seen.run_again);
    const Cost pass =
        decode ? forward_cost(shape, batch, length - 1, 1) : forward_cost(shape, batch, 0, length);
    result.total.flops += pass.flops;
    result.total.bytes += pass.bytes;
    result.shortest_ms += shortest_ms(pass, limits);
  }
  return result;
}

}  // namespace kvfuse::roofline
