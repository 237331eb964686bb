// Fibers for the emulator: Boost.Context switches, told to AddressSanitizer. They live as long as the process
// and run one CUDA thread after another, so that a launch costs no stacks and leaves no stale shadow memory
// behind.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace kvfuse::emulation {

class Fiber {
 public:
  Fiber() = default;  // stands for the code that is running already: the test's own stack

  // `body` never returns; it runs when the fiber is first resumed.
  explicit Fiber(void (*body)()) : body_(body) {
    constexpr std::size_t kStackBytes =
        256 * 1024;  // only what is touched takes memory, most with sanitizers
    const auto stack =
        boost::context::protected_fixedsize_stack(kStackBytes).allocate();  // with a guard page
    place_ = boost::context::detail::make_fcontext(stack.sp, stack.size, start);
    bottom_ = static_cast<std::byte*>(stack.sp) - stack.size;
    bytes_ = stack.size;
  }

  Fiber(const Fiber&) = delete;

  // Called on the running fiber: stops here until somebody resumes it, and resumes `next`.
  void switch_to(Fiber& next) {
    void* fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack, next.bottom_, next.bytes_);
#endif
    Switch request{this, &next};
    arrive(boost::context::detail::jump_fcontext(next.place_, &request), fake_stack);
  }

 private:
  struct Switch {
    Fiber* from;
    Fiber* to;
  };

  static void start(boost::context::detail::transfer_t transfer) {
    Fiber& self = *static_cast<Switch*>(transfer.data)->to;
    arrive(transfer, nullptr);
    self.body_();
  }

  // Notes where the fiber stopped that gave control away.
  static void arrive(boost::context::detail::transfer_t transfer, [[maybe_unused]] void* fake_stack) {
    Fiber& previous = *static_cast<Switch*>(transfer.data)->from;
    previous.place_ = transfer.fctx;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &previous.bottom_, &previous.bytes_);
#endif
  }

  void (*body_)() = nullptr;
  boost::context::detail::fcontext_t place_ = nullptr;
  const void* bottom_ = nullptr;  // of the stack
  std::size_t bytes_ = 0;
};

}  // namespace kvfuse::emulation
