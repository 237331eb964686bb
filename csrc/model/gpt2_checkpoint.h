// A GPT-2 checkpoint on disk: which stored tensor fills which place of the model, decided from headers alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "csrc/model/config.h"
#include "csrc/model/safetensors.h"

namespace kvfuse {

struct TensorSpec {
  std::string name;                 // "h.0.attn.c_attn.weight"
  std::vector<std::int64_t> shape;  // of a linear: [out, in]
  bool linear = false;
};

// Every tensor of the model, biases only where the model has them. The output head is tied and has none.
std::vector<TensorSpec> gpt2_tensors(const ModelConfig& config);

struct StoredTensor {
  const SafetensorsFile* file = nullptr;
  const TensorEntry* entry = nullptr;
  bool transposed = false;  // stored [in, out]
};

struct Gpt2Checkpoint {
  std::vector<SafetensorsFile> files;
  std::map<std::string, StoredTensor> tensors;  // one for each of gpt2_tensors()
  bool gelu_tanh = true;                        // the tanh form of GELU, not the exact one
};

// `path` is a .safetensors file, or a folder with model.safetensors, with model.safetensors.index.json and
// its shards, or with a single .safetensors file.
//
// Two namings are known, both with or without "_orig_mod." and "transformer." in front. They share their
// names and differ in how a linear lies: Hugging Face keeps [in, out], nanoGPT [out, in]. The fused QKV
// weight of layer 0 is never square and decides for the whole file. They also differ in the activation:
// Hugging Face means GELU's tanh form, nanoGPT the exact one; activation_function in a config.json beside the
// weights overrules that.
//
// Throws ModelFileError that lists the first ten of all the differences to `expected`: tensors that are
// missing, extra, misshaped or not floats, a head that is not tied, and fields of that config.json.
Gpt2Checkpoint open_gpt2_checkpoint(const std::filesystem::path& path, const ModelConfig& expected);

}  // namespace kvfuse
