// What a record says about the program, the machine and the model, as JSON.
#pragma once

#include <c10/core/Device.h>

#include <nlohmann/json.hpp>

#include "csrc/model/config.h"

namespace kvfuse::bench {

// CPU, GPU (null unless `device` is one), instruction set, threads, load, versions of the program and its
// compiler.
nlohmann::ordered_json machine_context(c10::Device device);

// The model's shape and the strategy's flags under their reference names.
nlohmann::ordered_json model_config_json(const ModelConfig& config, const Strategy& strategy);

// version, version_description and the strategy's choices, also under their reference names.
nlohmann::ordered_json strategy_json(const Strategy& strategy);

}  // namespace kvfuse::bench
