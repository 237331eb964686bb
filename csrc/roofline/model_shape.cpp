#include "csrc/roofline/model_shape.h"

#include <algorithm>
#include <array>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

constexpr std::int64_t kMostWidth = 1 << 20;

ModelShape llama(std::string name, std::int64_t n_layer, std::int64_t n_embd, std::int64_t n_head,
                 std::int64_t n_kv_head, std::int64_t d_ff, std::int64_t vocab_size) {
  return {.name = std::move(name),
          .architecture = Architecture::kLlama,
          .n_layer = n_layer,
          .n_embd = n_embd,
          .n_head = n_head,
          .n_kv_head = n_kv_head,
          .head_dim = n_embd / n_head,
          .d_ff = d_ff,
          .vocab_size = vocab_size};
}

}  // namespace

Architecture parse_architecture(std::string_view name) {
  static const std::vector<std::string> kNames = {"gpt2", "llama"};
  const std::string wanted = normal_name(name);
  if (wanted == kNames[0]) return Architecture::kGpt2;
  if (wanted == kNames[1]) return Architecture::kLlama;
  unknown_name("architecture", name, kNames);
}

ModelShape gpt2_shape(std::int64_t n_layer, std::int64_t n_head, std::int64_t n_embd, std::int64_t vocab_size,
                      std::int64_t block_size, bool bias) {
  check_range("n_head", n_head, 1, kMostHeads);
  check_range("n_embd", n_embd, 1, kMostWidth);
  check_divides("n_head", n_head, "n_embd", n_embd);
  return {.name = "gpt2",
          .architecture = Architecture::kGpt2,
          .n_layer = n_layer,
          .n_embd = n_embd,
          .n_head = n_head,
          .n_kv_head = n_head,
          .head_dim = n_embd / n_head,
          .d_ff = 4 * n_embd,
          .vocab_size = vocab_size,
          .block_size = block_size,
          .bias = bias};
}

void check_model(const ModelShape& model) {
  check_range("n_layer", model.n_layer, 1, 1024);
  check_range("n_embd", model.n_embd, 1, kMostWidth);
  check_range("n_head", model.n_head, 1, kMostHeads);
  check_range("n_kv_head", model.n_kv_head, 1, kMostHeads);
  check_range("head_dim", model.head_dim, 1, kMostHeadDim);
  check_range("d_ff", model.d_ff, 1, 1 << 22);
  check_range("vocab_size", model.vocab_size, 0, 1 << 24);
  check_range("block_size", model.block_size, 0, kMostTokens);
  check_range("borrowing_layers", model.borrowing_layers, 0, model.n_layer - 1);
  check_divides("n_kv_head", model.n_kv_head, "n_head", model.n_head);
  if (model.architecture == Architecture::kGpt2)
    check_range("n_head * head_dim of a GPT-2", model.query_width(), model.n_embd, model.n_embd);
}

const std::vector<ModelShape>& llama_presets() {
  // As in the config.json published with each model.
  static const std::vector<ModelShape> kPresets = {
      llama("tinyllama-1.1b", 22, 2048, 32, 4, 5632, 32000),
      llama("llama-2-7b", 32, 4096, 32, 32, 11008, 32000),
      llama("llama-2-13b", 40, 5120, 40, 40, 13824, 32000),
      llama("llama-2-70b", 80, 8192, 64, 8, 28672, 32000),
      llama("llama-3-8b", 32, 4096, 32, 8, 14336, 128256),
      llama("llama-3-70b", 80, 8192, 64, 8, 28672, 128256),
      llama("mistral-7b", 32, 4096, 32, 8, 14336, 32000),
  };
  return kPresets;
}

const ModelShape& llama_preset(std::string_view name) {
  std::vector<std::string> names;
  for (const ModelShape& model : llama_presets()) {
    if (normal_name(model.name) == normal_name(name)) return model;
    names.push_back(model.name);
  }
  unknown_name("model", name, names);
}

WeightCount count_weights(const ModelShape& model) {
  const bool gpt2 = model.architecture == Architecture::kGpt2;
  const auto layers = static_cast<double>(model.n_layer);
  const auto owning = static_cast<double>(model.owning_layers());
  const auto n_embd = static_cast<double>(model.n_embd);
  const auto query = static_cast<double>(model.query_width());
  const auto kv = static_cast<double>(model.kv_width());
  const auto d_ff = static_cast<double>(model.d_ff);
  const auto vocab = static_cast<double>(model.vocab_size);
  const double bias = model.bias ? 1 : 0;
  const double ffn_outputs = gpt2 ? d_ff + n_embd : 2 * d_ff + n_embd;
  const double norm = n_embd * (gpt2 ? 1 + bias : 1);
  return {.attention = layers * 2 * n_embd * query + owning * 2 * n_embd * kv,
          .ffn = layers * (gpt2 ? 2 : 3) * n_embd * d_ff,
          .head = vocab * n_embd,
          .embedding = gpt2 ? 0 : vocab * n_embd,
          .position = gpt2 ? static_cast<double>(model.block_size) * n_embd : 0,
          .vectors =
              (2 * layers + 1) * norm + bias * (layers * (query + n_embd + ffn_outputs) + owning * 2 * kv)};
}

double kv_layer_bytes(const ModelShape& model, double tokens, const KvStorage& storage,
                      Accounting accounting) {
  const auto heads = static_cast<double>(model.n_kv_head);
  const double recent = std::min(tokens, static_cast<double>(storage.recent_window));
  const Precision wide = activation_precision(storage.precision);
  return matrix_bytes(storage.precision, (tokens - recent) * heads, model.head_dim, accounting) +
         matrix_bytes(wide, recent * heads, model.head_dim, accounting);
}

double kv_cache_bytes(const ModelShape& model, double tokens, double batch, const KvStorage& storage,
                      Accounting accounting) {
  return 2 * static_cast<double>(model.owning_layers()) * batch *
         kv_layer_bytes(model, tokens, storage, accounting);
}

void check_cache(std::int64_t tokens, std::int64_t batch, const KvStorage& storage) {
  check_range("tokens", tokens, 0, kMostTokens);
  check_range("batch", batch, 1, kMostBatch);
  check_range("recent_window", storage.recent_window, 0, kMostTokens);
}

double kv_crossover_tokens(const ModelShape& model, double weight_bytes, double batch,
                           const KvStorage& storage) {
  check_positive("weight_bytes", weight_bytes);
  check_positive("batch", batch);
  return weight_bytes / kv_cache_bytes(model, 1, batch, {.precision = storage.precision, .recent_window = 0});
}

double ffn_share(const ModelShape& model) {
  const WeightCount count = count_weights(model);
  return count.ffn / count.linear();
}

}  // namespace kvfuse::roofline
