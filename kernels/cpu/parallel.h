// Work sharing for the CPU kernels on the process's one OpenMP pool, which PyTorch uses too.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

inline int worker_count(std::int64_t tasks) {
  if (omp_in_parallel()) return 1;
  const int most = omp_get_max_threads();
  return tasks < most ? static_cast<int>(tasks) : most;
}

// Runs task(index, next, worker) for every index in [0, tasks), worker in [0, workers). Indices are handed
// out in order to whichever worker is free, so a core that another process slows down does not hold the rest
// up. `next` is the index that this worker runs afterwards (>= tasks: none), claimed early so that its data
// can be prefetched. Which worker runs a task must not change its result.
template <typename Task>
void parallel_tasks(std::int64_t tasks, int workers, Task&& task) {
  if (workers <= 1) {
    for (std::int64_t index = 0; index < tasks; ++index) task(index, index + 1, 0);
    return;
  }
  std::atomic<std::int64_t> unclaimed{0};
  const auto claim = [&] { return unclaimed.fetch_add(1, std::memory_order_relaxed); };
  // No num_threads clause: changing the team's size makes libgomp tear down and rebuild its pool.
#pragma omp parallel
  {
    const int worker = omp_get_thread_num();
    if (worker < workers) {
      std::int64_t index = claim();
      while (index < tasks) {
        const std::int64_t next = claim();
        task(index, next, worker);
        index = next;
      }
    }
  }
}

// Grown on demand, never shrunk, one a thread that calls kernels: a call allocates nothing once it is warm.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // 64-byte aligned, contents undefined, valid until the next call.
  void* reserve(std::int64_t bytes) {
    if (bytes > capacity_) {
      std::free(data_);
      capacity_ = 0;
      data_ = std::aligned_alloc(64, static_cast<std::size_t>((bytes + 63) / 64 * 64));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = bytes;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::int64_t capacity_ = 0;
};

inline Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
