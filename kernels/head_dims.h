// The head sizes that the attention kernels are compiled for: drive the dispatch and its error text.
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

// Those of the CUDA kernels, which are compiled once per architecture too: the sizes that models come in.
using CudaHeadDims = IntList<64, 80, 96, 128>;

// Calls f(std::integral_constant<int, value>) for the list entry equal to `value`; false if there is none.
template <int... kValues, typename F>
bool with_int(std::int64_t value, IntList<kValues...>, F&& f) {
  return ((value == kValues && (f(std::integral_constant<int, kValues>{}), true)) || ...);
}

template <int... kValues>
constexpr bool contains(IntList<kValues...>, std::int64_t value) {
  return ((value == kValues) || ...);
}

// "16, 32, ..." for error messages.
template <int... kValues>
std::string to_text(IntList<kValues...>) {
  std::string text;
  ((text += (text.empty() ? "" : ", ") + std::to_string(kValues)), ...);
  return text;
}

}  // namespace kvfuse
