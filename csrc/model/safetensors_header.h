// The JSON header of a .safetensors file, taken apart as it is read.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/model/safetensors.h"

namespace kvfuse {

inline constexpr std::uint64_t kHeaderOffset = 8;  // the header's length stands before it

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;
  SafetensorsMetadata metadata;
};

// The entries in the order of the header, with offsets that count from the end of the header. Checks
// everything that an entry shows by itself; names may repeat, and sizes and offsets need not fit together.
SafetensorsHeader parse_safetensors_header(const RegularFile& file, std::uint64_t length);

}  // namespace kvfuse
