#include "benchmark/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "benchmark/errors.h"

namespace kvfuse::bench {
namespace {

std::atomic<int> noted_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler must not take a lock");

extern "C" void note_signal(int number) {
  if (noted_signal.exchange(number) != 0) ::_exit(static_cast<int>(ExitCode::kSignalBase) + number);
}

void set_handler(int number, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(number, &action, nullptr);
}

}  // namespace

void install_interrupt_handlers() {
  set_handler(SIGINT, note_signal);
  set_handler(SIGTERM, note_signal);
  set_handler(SIGXFSZ, SIG_IGN);
  set_handler(SIGPIPE, SIG_IGN);
}

int interrupted_signal() { return noted_signal.load(); }

}  // namespace kvfuse::bench
