#include "csrc/text/data_file.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <system_error>

namespace kvfuse {

std::string read_data_file(const std::filesystem::path& path, const std::string& what,
                           std::uintmax_t most_bytes, const std::string& hint) {
  const std::string suffix = hint.empty() ? "" : " (" + hint + ")";
  const auto fail = [&](const std::string& problem) {
    throw DataFileError(fmt::format("{}: {}{}", path.string(), problem, suffix));
  };
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status))
    fail(fmt::format("expected a {}, got \"{}\"", what,
                     error ? error.message() : "No such file or directory"));
  if (!std::filesystem::is_regular_file(status))
    fail(fmt::format("expected a {}, got something that is no regular file", what));
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) fail("its size can't be read: " + error.message());
  if (bytes == 0 || bytes > most_bytes)
    fail(fmt::format("expected a {} of 1 to {} bytes, got {}", what, most_bytes, bytes));
  std::string content(bytes, '\0');
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file.read(content.data(), static_cast<std::streamsize>(bytes)))
    fail(fmt::format("expected {} readable bytes: {}", bytes,
                     errno != 0 ? std::generic_category().message(errno) : "it became shorter meanwhile"));
  return content;
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int digest_bytes = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &digest_bytes, EVP_sha256(), nullptr) != 1)
    throw std::runtime_error("sha256_hex: libcrypto offers no SHA-256");
  return fmt::format("{:02x}", fmt::join(digest.begin(), digest.begin() + digest_bytes, ""));
}

}  // namespace kvfuse
