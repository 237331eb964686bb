// What the CPU's memory gives at best: the limit that times are set beside.
#pragma once

#include <cstddef>
#include <span>

namespace kvfuse {

// Memory several times as large as a last-level cache, written once; the same at every call, as touching
// fresh pages takes longer than reading them. Throws std::bad_alloc.
std::span<std::byte> large_buffer();

// Bytes a second of the fastest of several reads of large_buffer(), with all threads.
double measure_read_bandwidth();

// The same of this moment: reads the next eighth of large_buffer() once, in about a millisecond. A shared
// machine's bandwidth switches within seconds, so what a time is set beside must come from the same seconds.
// Single looks may meet a stall; take the median of several. Not for two threads at a time.
double glance_at_read_bandwidth();

}  // namespace kvfuse
