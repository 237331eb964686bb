// The head sizes that the attention kernels are compiled for: drives the dispatch and its error text.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

namespace kvfuse {

template <int... kValues>
struct IntList {};

// Multiples of 16, so that a row fills whole vectors on every instruction set.
using HeadDims = IntList<16, 32, 48, 64, 80, 96, 128>;

// Calls f(std::integral_constant<int, value>) for the list entry equal to `value`; false if there is none.
template <int... kValues, typename F>
bool with_int(std::int64_t value, IntList<kValues...>, F&& f) {
  return ((value == kValues && (f(std::integral_constant<int, kValues>{}), true)) || ...);
}

constexpr bool is_supported_head_dim(std::int64_t head_dim) {
  return []<int... kValues>(std::int64_t value, IntList<kValues...>) { return ((value == kValues) || ...); }
  (head_dim, HeadDims{});
}

// "16, 32, ..." for error messages.
inline std::string supported_head_dims() {
  return []<int... kValues>(IntList<kValues...>) {
    std::string text;
    ((text += (text.empty() ? "" : ", ") + std::to_string(kValues)), ...);
    return text;
  }
  (HeadDims{});
}

}  // namespace kvfuse
