#include "csrc/bindings/computing.h"

#include <omp.h>

#include <chrono>
#include <thread>

namespace kvfuse {
namespace {

constexpr std::chrono::milliseconds kSignalInterval{50};  // soon for a person, and nothing beside a token

bool look_for_signals() {
  const pybind11::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  return true;
}

}  // namespace

void Interruptible::run(const std::function<void()>& compute) {
  if (!aside_) return compute();
  // The caller's pool gives up its threads, and makes new ones when it next needs them: as soon as all pools
  // together have more threads than there are cores, libgomp's do not spin at a barrier but sleep.
  omp_pause_resource(omp_pause_soft, omp_get_initial_device());
  std::exception_ptr failure;
  std::thread worker([&] {
    try {
      const c10::InferenceMode inference;
      compute();
    } catch (...) {
      failure = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    done_ = true;
    changed_.notify_all();
  });
  serve();
  worker.join();
  if (ended_by_) std::rethrow_exception(ended_by_);
  if (failure) std::rethrow_exception(failure);
}

bool Interruptible::is_ended() {
  const std::lock_guard lock(mutex_);
  return ended_by_ != nullptr;
}

bool Interruptible::ask(const Question& question) {
  if (!aside_) return question();
  std::unique_lock lock(mutex_);
  if (ended_by_) return false;
  question_ = &question;
  changed_.notify_all();
  changed_.wait(lock, [&] { return question_ == nullptr; });
  return answer_ && !ended_by_;
}

void Interruptible::serve() {
  std::unique_lock lock(mutex_);
  while (!done_) {
    changed_.wait_for(lock, kSignalInterval, [&] { return done_ || question_ != nullptr; });
    const Question* const question = question_;
    lock.unlock();
    bool answer = false;
    std::exception_ptr ended_by;
    try {
      answer = question == nullptr ? look_for_signals() : (*question)();
    } catch (...) {
      ended_by = std::current_exception();
    }
    lock.lock();
    if (ended_by) ended_by_ = ended_by;
    if (question == nullptr) continue;
    answer_ = answer;
    question_ = nullptr;
    changed_.notify_all();
  }
}

}  // namespace kvfuse
