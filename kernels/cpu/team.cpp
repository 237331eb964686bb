#include "kernels/cpu/team.h"

#include <omp.h>

#include <exception>

namespace kvfuse::cpu {
namespace {

thread_local Team* conducted_team = nullptr;

// Some 200 us at 40 cycles or more each: operations of a step are shorter, and a thread that sleeps takes
// several us to wake.
constexpr int kSpins = 20000;

// Returns once value != old.
template <typename T>
T wait_for_change(const std::atomic<T>& value, T old, int spins) {
  for (int i = 0; i < spins; ++i) {
    const T now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    __builtin_ia32_pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

Team* Team::conducted() { return conducted_team; }

void Team::hand_out(Job job, const void* context) {
  job_ = job;
  context_ = context;
  at_work_.store(workers_ - 1, std::memory_order_relaxed);
  handed_out_.fetch_add(1, std::memory_order_release);
  handed_out_.notify_all();
}

void Team::run(Job job, const void* context) noexcept {
  hand_out(job, context);
  conducted_team = nullptr;
  job(context, 0);
  conducted_team = this;
  std::int32_t others = at_work_.load(std::memory_order_acquire);
  while (others > 0) others = wait_for_change(at_work_, others, spins_);
}

void Team::serve(int worker) noexcept {
  for (std::uint32_t job = 0;; ++job) {
    wait_for_change(handed_out_, job, spins_);
    if (job_ == nullptr) return;
    job_(context_, worker);
    if (at_work_.fetch_sub(1, std::memory_order_release) == 1) at_work_.notify_one();
  }
}

void Team::gather(void (*conduct)(const void*), const void* context) {
  if (omp_in_parallel() || omp_get_max_threads() == 1) return conduct(context);
  Team team;
  std::exception_ptr error;
#pragma omp parallel
  {
#pragma omp single
    {
      team.workers_ = omp_get_num_threads();
      // Where threads share processors, one that spins keeps another from working.
      team.spins_ = team.workers_ > omp_get_num_procs() ? 0 : kSpins;
    }
    if (omp_get_thread_num() == 0) {
      conducted_team = &team;
      try {
        conduct(context);
      } catch (...) {
        error = std::current_exception();
      }
      conducted_team = nullptr;
      team.hand_out(nullptr, nullptr);
    } else {
      team.serve(omp_get_thread_num());
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace kvfuse::cpu
