// The threads of the process's OpenMP pool, held together while many short operations follow one another.
#pragma once

#include <atomic>
#include <cstdint>

namespace kvfuse::cpu {

// One parallel region around all operations. Its first thread conducts: it runs whatever stands between the
// operations and hands each one out, for a tenth of what a region of its own costs (docs/decisions.md).
class Team {
 public:
  // Calls conduct() on this thread, which meanwhile conducts a team of all threads that OpenMP gives; without
  // one if there is but this thread, or a region around it already. Throws what conduct() throws.
  template <typename Conduct>
  static void gather(const Conduct& conduct) {
    gather([](const void* context) { (*static_cast<const Conduct*>(context))(); }, &conduct);
  }

  // The one that this thread conducts; null: none, or an operation of it is running.
  static Team* conducted();

  int workers() const { return workers_; }

  // Calls job(worker) once on every worker, this thread being worker 0, and returns when all are done. `job`
  // must not throw.
  template <typename Job>
  void run(const Job& job) {
    run([](const void* context, int worker) { (*static_cast<const Job*>(context))(worker); }, &job);
  }

 private:
  using Job = void (*)(const void* context, int worker);

  Team() = default;
  static void gather(void (*conduct)(const void*), const void* context);
  void run(Job job, const void* context) noexcept;
  void serve(int worker) noexcept;
  void hand_out(Job job, const void* context);

  int workers_ = 1;
  int spins_ = 0;      // before a thread that waits sleeps
  Job job_ = nullptr;  // null: the team parts
  const void* context_ = nullptr;
  alignas(64) std::atomic<std::uint32_t> handed_out_{0};  // jobs
  alignas(64) std::atomic<std::int32_t> at_work_{0};      // of the others
};

}  // namespace kvfuse::cpu
