// Reads memory and does nothing else: the physical limit that every figure is set beside.
#pragma once

#include <cstdint>

namespace kvfuse::cpu {

// Reads `bytes` (a multiple of 4096) once, each thread walking `streams` places of its part at the same time.
// Returns a checksum, so that no load can be left out.
std::uint64_t read_memory(const void* data, std::int64_t bytes, int streams);

}  // namespace kvfuse::cpu
