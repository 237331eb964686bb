// Files of text and tokens, read whole: what is refused, and in which words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>

namespace kvfuse {

// The message names the file, what was expected and what was found.
class DataFileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The bytes of `path`. Throws DataFileError if it is missing, no regular file (those could block or never
// end), empty or above `most_bytes`, or cannot be read. `what` is "token file" or the like; `hint` may be
// empty.
std::string read_data_file(const std::filesystem::path& path, const std::string& what,
                           std::uintmax_t most_bytes, const std::string& hint = "");

// Lower-case hexadecimal.
std::string sha256_hex(std::span<const std::byte> bytes);

}  // namespace kvfuse
