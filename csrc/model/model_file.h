// Files that a model comes from: errors that name them, and reads that survive whatever a path leads to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace kvfuse {

// A model file that is damaged, unreadable or of another model. The message is one line: "<file>: <problem>".
class ModelFileError : public std::runtime_error {
 public:
  ModelFileError(const std::filesystem::path& file, const std::string& problem);
};

// A text from outside in single quotes: control characters escaped, shortened to what a message can carry.
std::string in_quotes(std::string_view text);

// A regular file open for reading. Directories, pipes and devices are refused without blocking on them. The
// file is read and never mapped, so one that shrinks meanwhile is an error and no signal.
class RegularFile {
 public:
  explicit RegularFile(std::filesystem::path path);
  RegularFile(RegularFile&& other) noexcept;
  RegularFile& operator=(RegularFile&&) = delete;
  ~RegularFile();

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t size() const { return size_; }  // when it was opened
  // Fills `out` from `offset` on, or throws.
  void read(std::uint64_t offset, std::span<std::byte> out) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

}  // namespace kvfuse
