// Host time from a steady clock.
#pragma once

#include <chrono>

namespace kvfuse::bench {

class Timer {
 public:
  void restart() { start_ = Clock::now(); }
  double elapsed_ms() const {
    return std::chrono::duration<double, std::milli>(Clock::now() - start_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

}  // namespace kvfuse::bench
