// Reads memory and does nothing else: the physical limit that every figure is set beside.
#pragma once

#include <cstdint>

namespace kvfuse::cpu {

// Reads `bytes` (a multiple of 4096) once, with all threads, each in several places of its part at a time.
// Returns a checksum, so that no load can be left out.
std::uint64_t read_memory(const void* data, std::int64_t bytes);

}  // namespace kvfuse::cpu
