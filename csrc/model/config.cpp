#include "csrc/model/config.h"

#include <array>
#include <stdexcept>
#include <utility>

namespace kvfuse {
namespace {

// Layers, heads and widths as published with the GPT-2 weights; a new row is a new preset.
constexpr std::array<std::pair<std::string_view, ModelConfig>, 4> kPresets = {{
    {"gpt2", {.n_layer = 12, .n_head = 12, .n_embd = 768}},
    {"gpt2-medium", {.n_layer = 24, .n_head = 16, .n_embd = 1024}},
    {"gpt2-large", {.n_layer = 36, .n_head = 20, .n_embd = 1280}},
    {"gpt2-xl", {.n_layer = 48, .n_head = 25, .n_embd = 1600}},
}};

void check_positive(const char* field, std::int64_t value, std::int64_t most) {
  if (value < 1 || value > most)
    throw std::invalid_argument("model_config: expected 1 <= " + std::string(field) +
                                " <= " + std::to_string(most) + ", got " + std::to_string(value));
}

}  // namespace

std::int64_t ModelConfig::parameter_count() const {
  const std::int64_t bias_terms = bias ? 1 : 0;
  const std::int64_t norm = n_embd * (1 + bias_terms);
  const std::int64_t attention = 4 * n_embd * n_embd + bias_terms * 4 * n_embd;
  const std::int64_t mlp = 8 * n_embd * n_embd + bias_terms * 5 * n_embd;
  return (vocab_size + block_size) * n_embd + n_layer * (2 * norm + attention + mlp) + norm;
}

std::int64_t ModelConfig::parameter_count(const Strategy& strategy) const {
  const std::int64_t borrowing = n_layer - owning_layers(n_layer, strategy.sharing_group);
  return parameter_count() - borrowing * 2 * n_embd * (n_embd + (bias ? 1 : 0));
}

std::int64_t ModelConfig::weight_bytes(const Strategy& strategy, std::int64_t model_element_bytes) const {
  const WeightDtype dtype = strategy.weight_dtype;
  const auto matrix = [&](WeightDtype kind, std::int64_t out, std::int64_t in) {
    if (kind == WeightDtype::kModel) return out * in * model_element_bytes;
    const WeightFormat format = weight_format(kind);
    return out * (weight_row_bytes(format, DType::kInt8, in) + scale_row_bytes(format, in));
  };
  const bool codes = dtype != WeightDtype::kModel;
  std::int64_t values = vocab_size * n_embd;
  std::int64_t bytes = matrix(codes ? WeightDtype::kInt8 : dtype, vocab_size, n_embd);
  for (std::int64_t i = 0; i < n_layer; ++i) {
    const std::int64_t qkv = (i % strategy.sharing_group == 0 ? 3 : 1) * n_embd;
    for (const auto& [out, in] : {std::pair(qkv, n_embd), std::pair(n_embd, n_embd),
                                  std::pair(4 * n_embd, n_embd), std::pair(n_embd, 4 * n_embd)}) {
      values += out * in;
      bytes += matrix(dtype, out, in);
    }
  }
  const std::int64_t others = parameter_count(strategy) - block_size * n_embd - values;  // norms and biases
  return bytes + others * model_element_bytes;
}

void check_strategy(const Strategy& strategy) {
  if (strategy.sharing_group < 1)
    throw std::invalid_argument("version " + std::string(strategy.name) +
                                ": expected a sharing_group of at least 1 layer, got " +
                                std::to_string(strategy.sharing_group));
}

void check_model_config(const ModelConfig& config) {
  // The upper bounds keep every product of two fields far from 2^63.
  check_positive("n_layer", config.n_layer, 1024);
  check_positive("n_head", config.n_head, 1024);
  check_positive("n_embd", config.n_embd, 65536);
  check_positive("block_size", config.block_size, 1 << 20);
  check_positive("vocab_size", config.vocab_size, 1 << 24);
  if (config.n_embd % config.n_head != 0)
    throw std::invalid_argument("model_config: expected n_embd to be a multiple of n_head, got n_embd " +
                                std::to_string(config.n_embd) + " and n_head " +
                                std::to_string(config.n_head));
  if (!(config.dropout >= 0.0 && config.dropout < 1.0))
    throw std::invalid_argument("model_config: expected 0 <= dropout < 1, got " +
                                std::to_string(config.dropout));
}

ModelConfig preset_config(std::string_view name) {
  for (const auto& [preset, config] : kPresets)
    if (preset == name) return config;
  std::string known;
  for (const std::string& preset : preset_names()) known += (known.empty() ? "" : ", ") + preset;
  throw std::invalid_argument("unknown model \"" + std::string(name) + "\" (known: " + known + ")");
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& [preset, config] : kPresets) names.emplace_back(preset);
  return names;
}

const std::vector<TransformName>& transform_names() {
  static const std::vector<TransformName> kNames = {{"k_bias", &Transforms::k_bias},
                                                    {"v_bias", &Transforms::v_bias},
                                                    {"qk_balance", &Transforms::qk_balance},
                                                    {"rotation", &Transforms::rotation}};
  return kNames;
}

std::vector<std::string> names_of(const Transforms& transforms) {
  std::vector<std::string> names;
  for (const TransformName& row : transform_names())
    if (transforms.*row.flag) names.emplace_back(row.name);
  return names;
}

Transforms find_transforms(const std::vector<std::string>& names) {
  Transforms transforms;
  for (const std::string& name : names) {
    std::string known;
    bool found = false;
    for (const TransformName& row : transform_names()) {
      known += (known.empty() ? "" : ", ") + std::string(row.name);
      if (row.name != name) continue;
      transforms.*row.flag = true;
      found = true;
    }
    if (!found) throw std::invalid_argument("unknown transform \"" + name + "\" (known: " + known + ")");
  }
  return transforms;
}

std::int64_t kv_bytes_per_token(const ModelConfig& config, const Strategy& strategy,
                                std::int64_t model_element_bytes) {
  if (!strategy.use_cache) return 0;
  constexpr std::int64_t kScaleBytes = 4;  // one float32 scale a row of codes
  const bool quantised = strategy.kv_cache_dtype == KvCacheDtype::kInt8;
  const std::int64_t row_bytes =
      quantised ? config.head_dim() + kScaleBytes : config.head_dim() * model_element_bytes;
  return 2 * owning_layers(config.n_layer, strategy.sharing_group) * config.n_head * row_bytes;
}

}  // namespace kvfuse
