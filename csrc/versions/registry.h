// The one table of versions: name -> strategy. No other code compares version names.
#pragma once

#include <span>
#include <string_view>

#include "csrc/model/config.h"

namespace kvfuse {

std::span<const Strategy> versions();

// What speed-ups and quality losses are reported against: no cache, and a cache in the model's own precision.
const Strategy& uncached_baseline();
const Strategy& cached_baseline();

// Throws std::invalid_argument that lists the known names, or says what is wrong with the row.
const Strategy& find_version(std::string_view name);

}  // namespace kvfuse
