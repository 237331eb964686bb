// The shape of a GPT-2 model, and the strategy that its KV cache follows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvfuse {

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
  bool operator==(const ModelConfig&) const = default;
};

// Throws std::invalid_argument naming the field, the rule and the value.
void check_model_config(const ModelConfig& config);

// gpt2, gpt2-medium, gpt2-large, gpt2-xl. An unknown name throws std::invalid_argument listing the known
// ones.
ModelConfig preset_config(std::string_view name);
std::vector<std::string> preset_names();

enum class KvCacheDtype { kModel, kInt8 };

// How K and V are kept between decode steps. A named row of these choices is a version (csrc/versions).
struct Strategy {
  std::string_view name;
  std::string_view description;
  bool use_cache = false;
  KvCacheDtype kv_cache_dtype = KvCacheDtype::kModel;
  int sharing_group = 1;     // layers per owned K/V; 1 = every layer owns its own
  bool q_alignment = false;  // a borrowing layer takes its owner's query weights
};

// Bytes of K and V, scales included, that one token of one sequence takes in the cache; 0 without a cache.
std::int64_t kv_bytes_per_token(const ModelConfig& config, const Strategy& strategy,
                                std::int64_t model_element_bytes);

}  // namespace kvfuse
