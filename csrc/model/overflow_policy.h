// What happens when a sequence outgrows the tokens that the model can see at once. Includes nothing of torch.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace kvfuse {

enum class Overflow {
  kError,
  kSlide,  // the newest tokens are run again as a sequence of their own, at positions from 0 on
  kSink,   // the cache drops rows between its first few and its newest; the others stay as they are
};

struct OverflowName {
  std::string_view name;
  Overflow overflow;
};
inline constexpr std::array kOverflowNames = {OverflowName{"error", Overflow::kError},
                                              OverflowName{"slide", Overflow::kSlide},
                                              OverflowName{"sink", Overflow::kSink}};

// Of a name in the table.
constexpr Overflow find_overflow(std::string_view name) {
  for (const OverflowName& known : kOverflowNames)
    if (known.name == name) return known.overflow;
  return Overflow::kError;
}
constexpr std::string_view overflow_name(Overflow overflow) {
  for (const OverflowName& known : kOverflowNames)
    if (known.overflow == overflow) return known.name;
  return "";
}

struct OverflowPolicy {
  Overflow kind = Overflow::kError;
  std::int64_t keep = 0;  // tokens that stay when the window is full, the newest one, not yet run, among them
  std::int64_t sink = 0;  // of them those from the beginning; only of kSink
};

// kSlide: the first of `length` tokens that the newest of them sees through a window of `window` tokens. It
// moves when the window is full, so that `keep` tokens remain in it.
constexpr std::int64_t window_start(std::int64_t length, std::int64_t window, std::int64_t keep) {
  if (length <= window) return 0;
  const std::int64_t stride = window + 1 - keep;
  return (length - window + stride - 1) / stride * stride;
}

}  // namespace kvfuse
