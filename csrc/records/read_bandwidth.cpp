#include "csrc/records/read_bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "csrc/ops/cpu_step.h"

namespace kvfuse {
namespace {

constexpr std::size_t kBufferBytes = 256 << 20;
constexpr std::size_t kHugePage = 2 << 20;
constexpr int kRepetitions = 4;

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};

std::unique_ptr<std::byte, Free> make_buffer() {
  auto* data = static_cast<std::byte*>(std::aligned_alloc(kHugePage, kBufferBytes));
  if (data == nullptr) throw std::bad_alloc();
  madvise(data, kBufferBytes, MADV_HUGEPAGE);  // as the tensors are; a refusal only makes the limit lower
  std::memset(data, 0, kBufferBytes);
  return std::unique_ptr<std::byte, Free>(data);
}

}  // namespace

std::span<std::byte> large_buffer() {
  static const std::unique_ptr<std::byte, Free> buffer = make_buffer();
  return {buffer.get(), kBufferBytes};
}

double measure_read_bandwidth() {
  using Clock = std::chrono::steady_clock;
  const std::span<std::byte> buffer = large_buffer();
  double best = 0;
  for (const int streams : {1, 4, 8})
    for (int i = 0; i < kRepetitions; ++i) {
      const Clock::time_point start = Clock::now();
      ops::cpu_read_memory(buffer.data(), kBufferBytes, streams);
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      best = std::max(best, static_cast<double>(kBufferBytes) / seconds);
    }
  return best;
}

}  // namespace kvfuse
