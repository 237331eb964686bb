// csrc/roofline/data/hardware.json as text, put into the library by CMake.
#pragma once

#include <string_view>

namespace kvfuse::roofline {

std::string_view hardware_file_text();

}  // namespace kvfuse::roofline
