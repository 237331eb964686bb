#include "benchmark/memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>

namespace kvfuse::bench {
namespace {

std::atomic<std::int64_t> current_bytes{0};
std::atomic<std::int64_t> peak_bytes{0};
std::atomic<int> budget_lifted{0};

// A block's size stands in front of it, at a distance that keeps the block on its 64-byte line: PyTorch's
// raw_allocate demands that a block's context be the block itself.
constexpr std::int64_t kHeaderBytes = 64;

void free_block(void* data) {
  if (data == nullptr) return;
  char* base = static_cast<char*>(data) - kHeaderBytes;
  current_bytes.fetch_sub(*reinterpret_cast<std::int64_t*>(base));
  c10::free_cpu(base);
}

class CountingAllocator final : public c10::Allocator {
 public:
  void set_budget(std::optional<std::int64_t> bytes) { budget_bytes_ = bytes; }

  c10::DataPtr allocate(std::size_t size) override {
    const auto bytes = static_cast<std::int64_t>(size);
    const std::int64_t now = current_bytes.fetch_add(bytes) + bytes;
    if (budget_bytes_ && now > *budget_bytes_ && budget_lifted.load() == 0) {
      current_bytes.fetch_sub(bytes);
      TORCH_CHECK_WITH(OutOfMemoryError, false, "memory_budget: expected at most ", *budget_bytes_,
                       " bytes, an allocation of ", bytes, " would make it ", now);
    }
    char* base = nullptr;
    try {
      base = static_cast<char*>(c10::alloc_cpu(size + kHeaderBytes));
    } catch (...) {
      current_bytes.fetch_sub(bytes);
      throw;
    }
    *reinterpret_cast<std::int64_t*>(base) = bytes;
    for (std::int64_t peak = peak_bytes.load(); peak < now && !peak_bytes.compare_exchange_weak(peak, now);) {
    }
    void* data = base + kHeaderBytes;
    return {data, data, &free_block, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* dest, const void* src, std::size_t count) const override {
    default_copy_data(dest, src, count);
  }

 private:
  std::optional<std::int64_t> budget_bytes_;
};

}  // namespace

void install_counting_allocator(std::optional<std::int64_t> budget_bytes) {
  static CountingAllocator allocator;
  allocator.set_budget(budget_bytes);
  c10::SetCPUAllocator(&allocator, /*priority=*/100);
}

BudgetLifted::BudgetLifted() { ++budget_lifted; }
BudgetLifted::~BudgetLifted() { --budget_lifted; }

void request_huge_pages() { setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0); }  // read by c10::alloc_cpu

MemoryFigures memory_figures() { return {current_bytes.load(), peak_bytes.load()}; }

void reset_peak_memory() { peak_bytes.store(current_bytes.load()); }

}  // namespace kvfuse::bench
