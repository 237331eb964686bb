// Exact CPU memory figures: an allocator for tensors that counts what is held, and refuses what exceeds a
// budget.
#pragma once

#include <cstdint>
#include <optional>

namespace kvfuse::bench {

// Bytes held by CPU tensors, as PyTorch's CUDA allocator reports them for a GPU.
struct MemoryFigures {
  std::int64_t current_bytes = 0;
  std::int64_t peak_bytes = 0;  // since reset_peak_memory
};

// From now on every CPU tensor is counted. An allocation that would exceed `budget` bytes throws
// c10::OutOfMemoryError. Call once, before the first tensor.
void install_counting_allocator(std::optional<std::int64_t> budget_bytes);

// While one lives, the budget binds nobody: for what the measuring itself needs.
class BudgetLifted {
 public:
  BudgetLifted();
  ~BudgetLifted();
  BudgetLifted(const BudgetLifted&) = delete;
  BudgetLifted& operator=(const BudgetLifted&) = delete;
};

// Asks for 2 MiB pages under large tensors, where the system gives them on request: weights and caches are
// read in one stream, and a 4 KiB page every 64 lines costs a tenth of the bandwidth on a fast machine. Call
// before the first tensor.
void request_huge_pages();

MemoryFigures memory_figures();
void reset_peak_memory();

}  // namespace kvfuse::bench
