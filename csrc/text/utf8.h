// UTF-8 that comes from outside: where it stops being valid, and the same text with the damage replaced.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kvfuse {

// How many bytes from the start on are valid UTF-8 (no surrogates, nothing overlong, nothing above U+10FFFF).
std::size_t valid_utf8_bytes(std::string_view text);

// The text with U+FFFD for each maximal part of a character that breaks off, and for each byte that can't be
// part of one (Unicode, table 3-7): what Python's bytes.decode(errors="replace") gives.
std::string replace_invalid_utf8(std::string_view text);

}  // namespace kvfuse
