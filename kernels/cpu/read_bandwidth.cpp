// Streams through memory with vector loads.
#include "kernels/bandwidth.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kFloatsPerLine = kLine / static_cast<std::int64_t>(sizeof(float));

// A task is 1 MiB: long enough for the prefetchers, short enough to even out the workers.
constexpr std::int64_t kTaskBytes = 1 << 20;
// Of a core. Loops over them are unrolled: to prefetchers that know a stream by the instruction that loads
// it, one that goes from stream to stream follows none (docs/decisions.md).
constexpr int kStreams = 4;
// Beside Intel's prefetchers each stream is read faster if it is fetched so far ahead, beside AMD's slower.
constexpr std::int64_t kAheadBytes = 2 << 10;

template <bool kFetched>
std::uint64_t read_streams(const void* data, std::int64_t bytes) {
  const std::int64_t tasks = (bytes + kTaskBytes - 1) / kTaskBytes;
  std::atomic<std::uint64_t> checksum{0};
  parallel_tasks(tasks, worker_count(tasks), [&](std::int64_t task, std::int64_t, int) {
    const char* begin = static_cast<const char*>(data) + task * kTaskBytes;
    const std::int64_t size = bytes - task * kTaskBytes < kTaskBytes ? bytes - task * kTaskBytes : kTaskBytes;
    const std::int64_t stream_bytes = size / kStreams;
    Vec sums[kStreams] = {zero(), zero(), zero(), zero()};
    for (std::int64_t i = 0; i < stream_bytes; i += kLine) {
#pragma GCC unroll kStreams
      for (int s = 0; s < kStreams; ++s) {
        const auto* line = reinterpret_cast<const float*>(begin + s * stream_bytes + i);
        if constexpr (kFetched) __builtin_prefetch(begin + s * stream_bytes + i + kAheadBytes, 0, 2);
#pragma GCC unroll 16
        for (int j = 0; j < kFloatsPerLine; j += kLanes) sums[s] = add(sums[s], load(line + j));
      }
    }
    const float sum = reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    checksum.fetch_add(static_cast<std::uint64_t>(sum != 0.0F), std::memory_order_relaxed);
  });
  return checksum.load();
}

}  // namespace

std::uint64_t read_memory(const void* data, std::int64_t bytes) {
  return is_intel() ? read_streams<true>(data, bytes) : read_streams<false>(data, bytes);
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
