// Quantised weights on disk: what load_weights (weights.h) reads back as they are.
#pragma once

#include <filesystem>

#include "csrc/model/weights.h"

namespace kvfuse {

// Writes a safetensors file in the form that gpt2_checkpoint.h describes. It is complete or not there: it
// gets its name when all is on disk. Throws std::invalid_argument if the weights are not quantised, or layers
// share K and V, and std::filesystem::filesystem_error if the file cannot be written.
void write_quantized_weights(const std::filesystem::path& file, const Gpt2Weights& weights);

}  // namespace kvfuse
