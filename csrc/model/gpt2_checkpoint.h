// A GPT-2 checkpoint on disk: which stored tensor fills which place of the model, decided from headers alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/model/config.h"
#include "csrc/model/safetensors.h"

namespace kvfuse {

struct TensorSpec {
  std::string name;                 // "h.0.attn.c_attn.weight"
  std::vector<std::int64_t> shape;  // of a linear: [out, in]
  bool linear = false;
  std::string_view dtype = {};  // of codes and scales, as the format spells it; empty: any floats
};

// Every tensor of the model, biases only where the model has them. The output head is tied and has none.
// Quantised, the weights of linears and the token embedding are codes, and each has its scales,
// "h.0.attn.c_attn.weight_scale": shapes and dtypes are those of with_quantized_linears.
std::vector<TensorSpec> gpt2_tensors(const ModelConfig& config,
                                     WeightDtype weight_dtype = WeightDtype::kModel);

// What the metadata of a file of quantised weights says of it.
inline constexpr const char* kQuantizedVersionKey = "kvfuse_quantized_weights";  // its format
inline constexpr const char* kQuantizedVersion = "1";
inline constexpr const char* kWeightDtypeKey = "weight_dtype";  // as weight_dtype_name gives it
inline constexpr const char* kGeluTanhKey = "gelu_tanh";        // "true" or "false"

struct StoredTensor {
  const SafetensorsFile* file = nullptr;
  const TensorEntry* entry = nullptr;
  bool transposed = false;  // stored [in, out]
};

struct Gpt2Checkpoint {
  std::vector<SafetensorsFile> files;
  std::map<std::string, StoredTensor> tensors;  // one for each of gpt2_tensors()
  WeightDtype weight_dtype = WeightDtype::kModel;
  bool gelu_tanh = true;  // the tanh form of GELU, not the exact one
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
// A single file whose metadata has kQuantizedVersionKey holds quantised weights instead: the tensors of
// gpt2_tensors(), linears [out, in].
//
// Throws ModelFileError that lists the first ten of all the differences to `expected`: tensors that are
// missing, extra, misshaped or of the wrong kind, a head that is not tied, and fields of that config.json.
Gpt2Checkpoint open_gpt2_checkpoint(const std::filesystem::path& path, const ModelConfig& expected);

}  // namespace kvfuse
