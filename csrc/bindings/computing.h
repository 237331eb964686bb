// How bindings compute: without the lock that keeps other Python threads waiting, and so that Ctrl-C can end
// it.
#pragma once

#include <c10/core/InferenceMode.h>
#include <torch/csrc/utils/pybind.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>

namespace kvfuse {

// Other Python threads run meanwhile, and nothing is recorded for gradients.
using Computing = pybind11::call_guard<pybind11::gil_scoped_release, c10::InferenceMode>;

// A long computation that Ctrl-C ends. It runs on a thread of its own while the calling one waits, serves its
// callbacks and looks for signals: those are delivered to the main thread, and a handler's frame on a stack
// on which oneDNN computes damages the heap (docs/decisions.md). Without `aside`, as for a GPU, whose stream
// belongs to the calling thread, all runs there.
class Interruptible {
 public:
  explicit Interruptible(bool aside) : aside_(aside) {}

  // To be called without the GIL. Throws what `compute` or a callback throws, or KeyboardInterrupt.
  void run(const std::function<void()>& compute);

  // From within `compute`: calls `callback`, unless it is None, on the thread that called run. Returns false
  // to end the computation: after a signal or an error, or if the callback returns false; no answer means to
  // go on.
  template <typename... Arguments>
  bool tell(const pybind11::object& callback, const Arguments&... arguments) {
    if (aside_ && callback.is_none()) return !is_ended();
    return ask([&] {
      const pybind11::gil_scoped_acquire gil;
      const c10::InferenceMode as_outside(false);
      if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
      if (callback.is_none()) return true;
      const pybind11::object answer = callback(arguments...);
      return answer.is_none() || answer.cast<bool>();
    });
  }

 private:
  using Question = std::function<bool()>;

  bool is_ended();
  bool ask(const Question& question);
  void serve();

  const bool aside_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  const Question* question_ = nullptr;
  bool answer_ = true;
  bool done_ = false;
  std::exception_ptr ended_by_;  // a signal or a callback
};

}  // namespace kvfuse
