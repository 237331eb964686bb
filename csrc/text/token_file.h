// Reads nanoGPT's token files: GPT-2 token ids as little-endian uint16, nothing else.
#pragma once

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

namespace kvfuse {

// The message names the file, what was expected and what was found.
class DataFileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct TokenFile {
  std::vector<std::uint16_t> tokens;  // never empty, every one < vocab_size
  std::string sha256;                 // of the file's bytes, lower-case hexadecimal
};

// Throws DataFileError if the file can't be read, is empty, has half a token, or a token outside the
// vocabulary.
TokenFile read_token_file(const std::filesystem::path& path, std::int64_t vocab_size);

}  // namespace kvfuse
