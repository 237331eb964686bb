// Reads a token file whole, then checks and hashes it.
#include "csrc/text/token_file.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <fstream>
#include <span>
#include <system_error>

namespace kvfuse {
namespace {

constexpr const char* kHowToMake = "make data writes such files";

// Refuses what could block or never end: directories, pipes, devices.
std::uintmax_t regular_file_bytes(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    const std::string reason = error ? error.message() : "No such file or directory";
    throw DataFileError(
        fmt::format("{}: expected a token file, got \"{}\" ({})", path.string(), reason, kHowToMake));
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw DataFileError(fmt::format("{}: expected a token file, got something that is no regular file ({})",
                                    path.string(), kHowToMake));
  }
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error)
    throw DataFileError(fmt::format("{}: its size can't be read: {}", path.string(), error.message()));
  return bytes;
}

std::vector<std::uint16_t> read_tokens(const std::filesystem::path& path) {
  const std::uintmax_t bytes = regular_file_bytes(path);
  if (bytes == 0 || bytes % sizeof(std::uint16_t) != 0) {
    throw DataFileError(
        fmt::format("{}: expected little-endian uint16 tokens, a positive even number of bytes, got {} "
                    "bytes ({})",
                    path.string(), bytes, kHowToMake));
  }
  std::vector<std::uint16_t> tokens(bytes / sizeof(std::uint16_t));
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(tokens.data()), static_cast<std::streamsize>(bytes))) {
    const std::string reason =
        errno != 0 ? std::generic_category().message(errno) : "it became shorter meanwhile";
    throw DataFileError(fmt::format("{}: expected {} readable bytes: {}", path.string(), bytes, reason));
  }
  return tokens;
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int digest_bytes = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &digest_bytes, EVP_sha256(), nullptr) != 1) {
    throw std::runtime_error("read_token_file: libcrypto offers no SHA-256");
  }
  return fmt::format("{:02x}", fmt::join(digest.begin(), digest.begin() + digest_bytes, ""));
}

}  // namespace

TokenFile read_token_file(const std::filesystem::path& path, std::int64_t vocab_size) {
  static_assert(std::endian::native == std::endian::little,
                "token files are little-endian and read as they are");
  TokenFile file{.tokens = read_tokens(path), .sha256 = {}};
  for (std::size_t i = 0; i < file.tokens.size(); ++i) {
    if (file.tokens[i] >= vocab_size) {
      throw DataFileError(
          fmt::format("{}: token {} of {}: expected an id below {} (the model's vocab_size), got {} "
                      "(made with another vocabulary, or no token file)",
                      path.string(), i, file.tokens.size(), vocab_size, file.tokens[i]));
    }
  }
  file.sha256 = sha256_hex(std::as_bytes(std::span(file.tokens)));
  return file;
}

}  // namespace kvfuse
