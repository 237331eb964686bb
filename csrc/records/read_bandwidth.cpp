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
constexpr int kRepetitions = 8;
constexpr std::size_t kGlances = 8;  // that go once through the buffer

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};

// Bytes a second at which all threads read `memory` once.
double read_rate(std::span<const std::byte> memory) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  ops::cpu_read_memory(memory.data(), static_cast<std::int64_t>(memory.size()));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return static_cast<double>(memory.size()) / seconds;
}

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
  double best = 0;
  for (int i = 0; i < kRepetitions; ++i) best = std::max(best, read_rate(large_buffer()));
  return best;
}

double glance_at_read_bandwidth() {
  constexpr std::size_t kBytes = kBufferBytes / kGlances;
  static std::size_t next = 0;  // what was read last may still lie in a cache
  next = (next + 1) % kGlances;
  return read_rate(large_buffer().subspan(next * kBytes, kBytes));
}

}  // namespace kvfuse
