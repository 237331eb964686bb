#include "benchmark/shape.h"

namespace kvfuse::bench {

roofline::TransformerShape transformer_shape(const BenchConfig& config, const Strategy& strategy) {
  const ModelConfig& model = config.model;
  const std::int64_t weight_bytes = element_bytes(config.dtype);
  return {.n_layer = model.n_layer,
          .borrowing_layers = model.n_layer - owning_layers(model.n_layer, strategy.sharing_group),
          .n_embd = model.n_embd,
          .vocab_size = model.vocab_size,
          .parameters = model.parameter_count(strategy) - model.block_size * model.n_embd,
          .weight_bytes = weight_bytes,
          .kv_bytes_per_token = kv_bytes_per_token(model, strategy, weight_bytes)};
}

}  // namespace kvfuse::bench
