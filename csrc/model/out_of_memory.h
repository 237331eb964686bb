// How PyTorch says that there is no memory left.
#pragma once

#include <c10/util/Exception.h>

#include <string_view>

namespace kvfuse {

// Its CPU allocator throws a plain c10::Error, unlike all others, which throw c10::OutOfMemoryError.
inline bool says_out_of_memory(const c10::Error& error) {
  const std::string_view text = error.what_without_backtrace();
  return text.find("can't allocate memory") != std::string_view::npos ||
         text.find("Storage size calculation overflowed") != std::string_view::npos;
}

}  // namespace kvfuse
