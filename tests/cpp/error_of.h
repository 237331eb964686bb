// What a call that must fail says.
#pragma once

#include <exception>
#include <string>

namespace kvfuse {

// The message of the std::exception that f throws; "" if it throws none.
template <typename F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace kvfuse
