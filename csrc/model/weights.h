// The weights of GPT-2 as tensors: read from a checkpoint, or drawn at random.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "csrc/model/config.h"
#include "csrc/model/model_file.h"

namespace kvfuse {

// Contiguous tensors of one dtype, on one device. The weight of a linear is [out, in], and may be codes with
// a scale for each output (quantized_weights.h); a bias that the model lacks is undefined, and so is the
// scale of what is not quantised.
struct LayerWeights {
  at::Tensor ln_1_weight, ln_1_bias;  // [n_embd]
  at::Tensor qkv_weight, qkv_bias;    // [3 * n_embd, n_embd]: queries, keys, values; queries alone in a layer
                                      // that borrows another's keys and values
  at::Tensor attn_proj_weight, attn_proj_bias;  // [n_embd, n_embd]
  at::Tensor ln_2_weight, ln_2_bias;            // [n_embd]
  at::Tensor fc_weight, fc_bias;                // [4 * n_embd, n_embd]
  at::Tensor mlp_proj_weight, mlp_proj_bias;    // [n_embd, 4 * n_embd]
  at::Tensor qkv_scale, attn_proj_scale, fc_scale, mlp_proj_scale;
};

struct NamedTensor {
  std::string name;
  at::Tensor* tensor;
};

struct Gpt2Weights {
  ModelConfig config;
  at::Tensor token_embedding;  // [vocab_size, n_embd], the output head as well
  at::Tensor token_embedding_scale;
  at::Tensor position_embedding;  // [block_size, n_embd]
  std::vector<LayerWeights> layers;
  int sharing_group = 1;              // layers that attend to the keys and values of the first of them
  at::Tensor ln_f_weight, ln_f_bias;  // [n_embd]
  bool packed = false;                // the linears lie as packed_weights.h says
  bool packed_tokens = false;         // and so does the token embedding
  bool gelu_tanh = true;              // the tanh form of GELU, not the exact one
  std::vector<std::string> warnings;  // what is odd about the file, a line each

  // Those of the activations, and of all weights that are not quantised.
  at::TensorOptions options() const { return position_embedding.options(); }
  at::ScalarType dtype() const { return position_embedding.scalar_type(); }
  at::Device device() const { return position_embedding.device(); }

  // Every tensor that the model has, by its name in a checkpoint (gpt2_checkpoint.h).
  std::vector<NamedTensor> tensors();
  // kModel unless they are quantised.
  WeightDtype weight_dtype() const;
  std::int64_t byte_size() const;
  // The same weights on another device; itself if they are there already.
  Gpt2Weights to(at::Device device) const;
};

struct LoadOptions {
  bool strict = false;  // weights that are NaN or infinite are an error, no warning
};

// Reads a checkpoint (gpt2_checkpoint.h says which) and converts it to `dtype`: float32, bfloat16, float16 or
// float64. Throws ModelFileError on whatever is wrong with the file.
Gpt2Weights load_weights(const std::filesystem::path& file_or_folder, const ModelConfig& expected,
                         at::ScalarType dtype, const LoadOptions& options = {});

// GPT-2's initialisation: normal with deviation `std_dev`, for the projections into the residual stream
// divided by sqrt(2 * n_layer); norms 1, biases 0. Drawn in float32: a seed gives the same weights, rounded,
// in every dtype.
Gpt2Weights random_weights(const ModelConfig& config, at::ScalarType dtype, std::uint64_t seed,
                           double std_dev = 0.02);

// int64 ids drawn uniformly from the vocabulary, on the CPU: the same on every machine.
at::Tensor random_token_ids(at::IntArrayRef shape, std::int64_t vocab_size, std::uint64_t seed);

}  // namespace kvfuse
