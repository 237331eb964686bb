// Streams through memory with vector loads.
#include "kernels/bandwidth.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kFloatsPerLine = kLine / static_cast<std::int64_t>(sizeof(float));

// A task is 1 MiB: long enough for the prefetchers, short enough to even out the workers.
constexpr std::int64_t kTaskBytes = 1 << 20;

}  // namespace

std::uint64_t read_memory(const void* data, std::int64_t bytes, int streams) {
  const std::int64_t tasks = (bytes + kTaskBytes - 1) / kTaskBytes;
  std::atomic<std::uint64_t> checksum{0};
  parallel_tasks(tasks, worker_count(tasks), [&](std::int64_t task, std::int64_t, int) {
    const char* begin = static_cast<const char*>(data) + task * kTaskBytes;
    const std::int64_t size = bytes - task * kTaskBytes < kTaskBytes ? bytes - task * kTaskBytes : kTaskBytes;
    const std::int64_t stream_bytes = size / streams / kLine * kLine;
    Vec even = zero();
    Vec odd = zero();
    for (std::int64_t i = 0; i < stream_bytes; i += kLine)
      for (int s = 0; s < streams; ++s) {
        const float* line = reinterpret_cast<const float*>(begin + s * stream_bytes + i);
        for (int j = 0; j < kFloatsPerLine; j += 2 * kLanes) {
          even = add(even, load(line + j));
          if constexpr (kLanes < kFloatsPerLine) odd = add(odd, load(line + j + kLanes));
        }
      }
    checksum.fetch_add(static_cast<std::uint64_t>(reduce_add(add(even, odd)) != 0.0F),
                       std::memory_order_relaxed);
  });
  return checksum.load();
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
