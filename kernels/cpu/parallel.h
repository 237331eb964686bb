// Work sharing for the CPU kernels on the process's one OpenMP pool, which PyTorch uses too.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "kernels/cpu/team.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

inline int worker_count(std::int64_t tasks) {
  const Team* team = Team::conducted();
  if (team == nullptr && omp_in_parallel()) return 1;
  const int most = team != nullptr ? team->workers() : omp_get_max_threads();
  return tasks < most ? static_cast<int>(tasks) : most;
}

// Tasks in as many runs as there are workers. Each worker goes through one of its own, which lies in memory
// as one stream that the hardware follows, and then helps with the others, so a core that another process
// slows down does not hold the rest up.
class TaskRuns {
 public:
  TaskRuns(std::int64_t tasks, int workers) : tasks_(tasks), count_(std::min(workers, kMost)) {
    for (int run = 0; run < count_; ++run) unclaimed_[run].first.store(begin(run), std::memory_order_relaxed);
  }

  // The next task of `worker`, which no other gets; one >= tasks: none is left.
  std::int64_t claim(int worker) {
    for (int i = 0; i < count_; ++i) {
      const int run = (worker + i) % count_;
      const std::int64_t end = begin(run + 1);
      if (unclaimed_[run].first.load(std::memory_order_relaxed) >= end) continue;
      const std::int64_t task = unclaimed_[run].first.fetch_add(1, std::memory_order_relaxed);
      if (task < end) return task;
    }
    return tasks_;
  }

 private:
  static constexpr int kMost = 64;  // more workers share
  struct alignas(64) Unclaimed {    // a cache line each
    std::atomic<std::int64_t> first;
  };

  std::int64_t begin(int run) const { return tasks_ * run / count_; }

  std::int64_t tasks_;
  int count_;
  Unclaimed unclaimed_[kMost];
};

// Runs task(index, next, worker) for every index in [0, tasks), worker in [0, workers). `next` is the index
// that this worker runs afterwards (>= tasks: none), claimed early so that its data can be prefetched. Which
// worker runs a task must not change its result.
template <typename Task>
void parallel_tasks(std::int64_t tasks, int workers, Task&& task) {
  if (workers <= 1) {
    for (std::int64_t index = 0; index < tasks; ++index) task(index, index + 1, 0);
    return;
  }
  TaskRuns runs(tasks, workers);
  const auto work = [&](int worker) {
    if (worker >= workers) return;
    std::int64_t index = runs.claim(worker);
    while (index < tasks) {
      const std::int64_t next = runs.claim(worker);
      task(index, next, worker);
      index = next;
    }
  };
  if (Team* team = Team::conducted()) return team->run(work);
    // No num_threads clause: changing the team's size makes libgomp tear down and rebuild its pool.
#pragma omp parallel
  work(omp_get_thread_num());
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
