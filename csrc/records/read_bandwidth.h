// What the CPU's memory gives at best: the limit that times are set beside.
#pragma once

#include <cstddef>
#include <span>

namespace kvfuse {

// Memory several times as large as a last-level cache, written once; the same at every call, as touching
// fresh pages takes longer than reading them. Throws std::bad_alloc.
std::span<std::byte> large_buffer();

// Bytes a second of the fastest of several ways to read large_buffer(), with all threads.
double measure_read_bandwidth();

}  // namespace kvfuse
