// The shape of a GPT-2 model, the strategy that its KV cache follows, and how its weights are prepared for
// it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/weight_format.h"

namespace kvfuse {

struct Strategy;

struct ModelConfig {
  std::int64_t n_layer = 12;
  std::int64_t n_head = 12;
  std::int64_t n_embd = 768;
  std::int64_t block_size = 1024;
  std::int64_t vocab_size = 50257;
  double dropout = 0.0;  // kept for the record: inference applies none
  bool bias = true;

  std::int64_t head_dim() const { return n_embd / n_head; }
  // Trainable parameters; the output head shares the token embedding.
  std::int64_t parameter_count() const;
  // Those that `strategy` uses: a layer that borrows keys and values has no projection to them.
  std::int64_t parameter_count(const Strategy& strategy) const;
  // Bytes of the weights as `strategy` keeps them, without the position table, of which a step reads one row.
  std::int64_t weight_bytes(const Strategy& strategy, std::int64_t model_element_bytes) const;
  bool operator==(const ModelConfig&) const = default;
};

// Throws std::invalid_argument naming the field, the rule and the value.
void check_model_config(const ModelConfig& config);

// gpt2, gpt2-medium, gpt2-large, gpt2-xl. An unknown name throws std::invalid_argument listing the known
// ones.
ModelConfig preset_config(std::string_view name);
std::vector<std::string> preset_names();

enum class KvCacheDtype { kModel, kInt8 };

// How the weights of linears and the token embedding are kept (csrc/model/quantized_weights).
enum class WeightDtype { kModel, kInt8, kInt4 };
constexpr const char* weight_dtype_name(WeightDtype dtype) {
  return dtype == WeightDtype::kInt8 ? "int8" : dtype == WeightDtype::kInt4 ? "int4" : "model";
}
// As the kernels call it, of the layers' linears; the token embedding is never below 8 bits.
constexpr WeightFormat weight_format(WeightDtype dtype, bool packed = false) {
  if (dtype == WeightDtype::kInt4) return packed ? WeightFormat::kInt4Panels : WeightFormat::kInt4Groups;
  if (dtype == WeightDtype::kInt8) return packed ? WeightFormat::kInt8Panels : WeightFormat::kInt8Rows;
  return packed ? WeightFormat::kFloatPanels : WeightFormat::kFloat;
}

// What a borrowing layer's queries, made for keys of its own, become before they meet its owner's.
enum class QAlignment {
  kNone,
  kCopy,  // the owner's query weights take their place
  kFit    // query and output weights are fitted to the owner's keys and values (csrc/model/layer_fit)
};
constexpr const char* q_alignment_name(QAlignment alignment) {
  return alignment == QAlignment::kFit ? "fit" : alignment == QAlignment::kCopy ? "copy" : "none";
}

// How K and V are kept between decode steps, and the weights. A named row of these choices is a version
// (csrc/versions).
struct Strategy {
  std::string_view name;
  std::string_view description;
  bool use_cache = false;
  KvCacheDtype kv_cache_dtype = KvCacheDtype::kModel;
  int sharing_group = 1;  // layers per owned K/V; 1 = every layer owns its own
  QAlignment q_alignment = QAlignment::kNone;
  WeightDtype weight_dtype = WeightDtype::kModel;
};

// Throws std::invalid_argument naming the version, the rule and the value.
void check_strategy(const Strategy& strategy);

// Layers that keep K and V of their own: the first of each group. The last group may be smaller.
constexpr std::int64_t owning_layers(std::int64_t n_layer, std::int64_t sharing_group) {
  return (n_layer + sharing_group - 1) / sharing_group;
}

// Sequences whose prompts, of up to `prompt_length` tokens, run in one pass: 4096 tokens keep matrix products
// at full speed, and what a pass holds beside the cache does not grow with the batch.
constexpr std::int64_t prompts_at_once(std::int64_t prompt_length) {
  constexpr std::int64_t kTokensAtOnce = 4096;
  return prompt_length < kTokensAtOnce ? kTokensAtOnce / prompt_length : 1;
}

// Exact rewritings of the attention weights (csrc/model/transforms), in the order in which they are applied.
// Each is independent of the others.
struct Transforms {
  bool k_bias = false;      // drop what is the same in every key: softmax does not see it
  bool v_bias = false;      // move what is the same in every value into the output bias: weights sum to 1
  bool qk_balance = false;  // divide each key channel by its typical size, multiply the query's by it
  bool rotation = false;    // rotate queries and keys, and values and output, of each head: spreads outliers

  bool any() const { return k_bias || v_bias || qk_balance || rotation; }
  bool operator==(const Transforms&) const = default;
};

// The names in a configuration, and the flag each sets.
struct TransformName {
  std::string_view name;
  bool Transforms::*flag;
};
const std::vector<TransformName>& transform_names();
std::vector<std::string> names_of(const Transforms& transforms);
// Throws std::invalid_argument that lists the known names.
Transforms find_transforms(const std::vector<std::string>& names);

// Bytes of K and V, scales included, that one token of one sequence takes in the cache; 0 without a cache.
std::int64_t kv_bytes_per_token(const ModelConfig& config, const Strategy& strategy,
                                std::int64_t model_element_bytes);

}  // namespace kvfuse
