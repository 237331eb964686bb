// The shape of a decoder-only transformer, and what of it takes memory.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/roofline/precision.h"

namespace kvfuse::roofline {

enum class Architecture {
  kGpt2,  // learned positions, LayerNorm, GELU between two FFN products, output head tied to the embedding
  kLlama  // rotary positions, RMSNorm, gated SiLU with three FFN products, untied head
};
constexpr const char* architecture_name(Architecture architecture) {
  return architecture == Architecture::kGpt2 ? "gpt2" : "llama";
}
Architecture parse_architecture(std::string_view name);

struct ModelShape {
  std::string name;
  Architecture architecture = Architecture::kLlama;
  std::int64_t n_layer = 0;
  std::int64_t n_embd = 0;
  std::int64_t n_head = 0;
  std::int64_t n_kv_head = 0;
  std::int64_t head_dim = 0;
  std::int64_t d_ff = 0;
  std::int64_t vocab_size = 0;        // 0: without embedding and head, as the published figures count
  std::int64_t block_size = 0;        // learned positions; 0 where there are none
  std::int64_t borrowing_layers = 0;  // of n_layer, those that use another layer's K and V
  bool bias = false;                  // in linear layers (and, GPT-2, in norms)

  std::int64_t query_width() const { return n_head * head_dim; }
  std::int64_t kv_width() const { return n_kv_head * head_dim; }
  std::int64_t owning_layers() const { return n_layer - borrowing_layers; }
};

// A GPT-2 with heads of n_embd / n_head and an FFN of 4 n_embd.
ModelShape gpt2_shape(std::int64_t n_layer, std::int64_t n_head, std::int64_t n_embd, std::int64_t vocab_size,
                      std::int64_t block_size, bool bias = true);

// Throws std::invalid_argument naming the field, the rule and the value: sizes out of range, query heads that
// are no multiple of the K/V heads, a width that the heads do not divide, layers that all borrow.
void check_model(const ModelShape& model);

// Llama-style models by name. An unknown one throws std::invalid_argument that lists the names and the
// nearest.
const std::vector<ModelShape>& llama_presets();
const ModelShape& llama_preset(std::string_view name);

// Elements of the weights.
struct WeightCount {
  double attention = 0;  // four projections, without biases
  double ffn = 0;
  double head = 0;
  double embedding = 0;  // the token table, if the head is not tied to it
  double position = 0;
  double vectors = 0;  // biases and norms

  double linear() const { return attention + ffn; }  // of the layers
  double total() const { return attention + ffn + head + embedding + position + vectors; }
};
WeightCount count_weights(const ModelShape& model);

// How the cache keeps K and V.
struct KvStorage {
  Precision precision = Precision::kFp16;
  std::int64_t recent_window = 0;  // so many latest tokens stay in 16 bits
};

// Throws std::invalid_argument naming the field, the rule and the value.
void check_cache(std::int64_t tokens, std::int64_t batch, const KvStorage& storage);

// K and V of `tokens` tokens of `batch` sequences in all owning layers, scales included.
double kv_cache_bytes(const ModelShape& model, double tokens, double batch, const KvStorage& storage,
                      Accounting accounting = Accounting::kComplete);

// Of K or V alone in one layer, for one sequence.
double kv_layer_bytes(const ModelShape& model, double tokens, const KvStorage& storage,
                      Accounting accounting = Accounting::kComplete);

// The context from which on a decode step reads more K and V than `weight_bytes`, at one batch.
double kv_crossover_tokens(const ModelShape& model, double weight_bytes, double batch,
                           const KvStorage& storage);

// The FFN's share of the layers' linear weights, and so of their products in decode.
double ffn_share(const ModelShape& model);

}  // namespace kvfuse::roofline
