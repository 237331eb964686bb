#include "csrc/text/token_file.h"

#include <fmt/format.h>

#include <bit>
#include <cstddef>
#include <cstring>
#include <span>

namespace kvfuse {
namespace {

constexpr std::uintmax_t kMostBytes = std::uintmax_t{4} << 30;
constexpr const char* kHowToMake = "make data writes such files";

std::vector<std::uint16_t> read_tokens(const std::filesystem::path& path) {
  const std::string bytes = read_data_file(path, "token file", kMostBytes, kHowToMake);
  if (bytes.size() % sizeof(std::uint16_t) != 0)
    throw DataFileError(
        fmt::format("{}: expected little-endian uint16 tokens, an even number of bytes, got {} bytes "
                    "({})",
                    path.string(), bytes.size(), kHowToMake));
  std::vector<std::uint16_t> tokens(bytes.size() / sizeof(std::uint16_t));
  std::memcpy(tokens.data(), bytes.data(), bytes.size());
  return tokens;
}

void check_ids(const std::filesystem::path& path, const TokenFile& file, std::int64_t vocab_size) {
  for (std::size_t i = 0; i < file.tokens.size(); ++i) {
    if (file.tokens[i] >= vocab_size) {
      throw DataFileError(
          fmt::format("{}: token {} of {}: expected an id below {} (the model's vocab_size), got {} "
                      "(made with another vocabulary, or no token file)",
                      path.string(), i, file.tokens.size(), vocab_size, file.tokens[i]));
    }
  }
}

}  // namespace

TokenFile read_token_file(const std::filesystem::path& path, std::int64_t vocab_size) {
  static_assert(std::endian::native == std::endian::little,
                "token files are little-endian and read as they are");
  TokenFile file{.tokens = read_tokens(path), .sha256 = {}};
  check_ids(path, file, vocab_size);
  file.sha256 = sha256_hex(std::as_bytes(std::span(file.tokens)));
  return file;
}

TokenFile read_text_file(const std::filesystem::path& path, const Gpt2Tokenizer& tokenizer,
                         std::int64_t vocab_size) {
  const std::string text = read_data_file(path, "text file", kMostBytes);
  TokenFile file{.tokens = tokenizer.encode(text), .sha256 = sha256_hex(std::as_bytes(std::span(text)))};
  check_ids(path, file, vocab_size);
  return file;
}

}  // namespace kvfuse
