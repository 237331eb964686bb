#include "benchmark/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "benchmark/errors.h"

namespace kvfuse::bench {
namespace {

std::atomic<int> noted_signal{0};

}  // namespace

// A thread waits for the signals instead of a handler: oneDNN's matrix products (in torch 2.11) keep data
// below the stack pointer, past the red zone, and a handler's frame on their stack overwrites it.
void install_interrupt_handlers() {
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  if (pthread_sigmask(SIG_BLOCK, &signals, nullptr) != 0) return;  // threads started from now on inherit it
  std::thread([signals] {
    for (;;) {
      int number = 0;
      if (sigwait(&signals, &number) == 0 && noted_signal.exchange(number) != 0)
        ::_exit(static_cast<int>(ExitCode::kSignalBase) + number);
    }
  }).detach();
}

int interrupted_signal() { return noted_signal.load(); }

}  // namespace kvfuse::bench
