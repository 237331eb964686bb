// The files of a checkpoint: the weights that a path stands for, and Hugging Face's config.json beside them.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "csrc/model/config.h"
#include "csrc/model/safetensors.h"

namespace kvfuse {

struct CheckpointFolder {
  std::vector<SafetensorsFile> files;
  nlohmann::json config;  // an object; null where there is no config.json
};

// A file or a folder, as gpt2_checkpoint.h says. A sharded checkpoint holds exactly what its index lists.
CheckpointFolder open_checkpoint_folder(const std::filesystem::path& path);

// Reports each field of config.json that is there and does not agree with `expected` or with what GPT-2
// computes. n_head, above all, shows in no tensor's shape. Returns whether GELU is the tanh form; nullopt: it
// does not say.
std::optional<bool> check_hugging_face_config(const nlohmann::json& config, const ModelConfig& expected,
                                              const std::function<void(std::string)>& report);

}  // namespace kvfuse
