#include "csrc/model/model_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace kvfuse {
namespace {

constexpr std::size_t kMaxQuotedBytes = 160;

std::string on_one_line(std::string_view text) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f)
      line += c;
    else
      line += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return line;
}

std::string errno_text() { return std::generic_category().message(errno); }

}  // namespace

ModelFileError::ModelFileError(const std::filesystem::path& file, const std::string& problem)
    : std::runtime_error(on_one_line(file.native()) + ": " + problem) {}

std::string in_quotes(std::string_view text) {
  if (text.size() <= kMaxQuotedBytes) return "'" + on_one_line(text) + "'";
  std::size_t end = kMaxQuotedBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // not inside a character
  return "'" + on_one_line(text.substr(0, end)) + "...'";
}

RegularFile::RegularFile(std::filesystem::path path) : path_(std::move(path)) {
  // Without O_NONBLOCK, opening a pipe would wait for a writer.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (descriptor_ < 0) throw ModelFileError(path_, "cannot be opened: " + errno_text());
  struct stat status {};
  std::string problem;
  if (::fstat(descriptor_, &status) != 0)
    problem = "cannot be inspected: " + errno_text();
  else if (!S_ISREG(status.st_mode))
    problem = std::string("expected a regular file, got ") +
              (S_ISDIR(status.st_mode) ? "a directory" : "a pipe, socket or device");
  if (!problem.empty()) {
    ::close(descriptor_);
    throw ModelFileError(path_, problem);
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

RegularFile::RegularFile(RegularFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_) {}

RegularFile::~RegularFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void RegularFile::read(std::uint64_t offset, std::span<std::byte> out) const {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t got =
        ::pread(descriptor_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      throw ModelFileError(path_,
                           "cannot be read at byte " + std::to_string(offset + done) + ": " + errno_text());
    if (got == 0)
      throw ModelFileError(path_, "shrank while it was read: had " + std::to_string(size_) +
                                      " bytes, now ends at or before byte " + std::to_string(offset + done));
    done += static_cast<std::size_t>(got);
  }
}

}  // namespace kvfuse
