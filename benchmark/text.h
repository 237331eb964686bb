// Small text functions that configuration, command line and tables share.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvfuse::bench {

// `text` with control characters and invalid UTF-8 escaped, cut after 60 bytes: safe to print on one line.
std::string printable(std::string_view text);

// The same in double quotes.
std::string in_quotes(std::string_view text);

// "a, b, c"
std::string joined(const std::vector<std::string>& words);

// The known word that `word` probably meant, or "" if none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

// " (hint: did you mean "x"?)", or "" if no known word is near.
std::string suggestion(std::string_view word, const std::vector<std::string>& known);

// Byte offset of the first byte that is not part of valid UTF-8, or npos.
std::size_t invalid_utf8(std::string_view text);

}  // namespace kvfuse::bench
