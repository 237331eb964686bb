// A strict reader of one .safetensors file: after open(), every tensor lies inside the file and has its size.
//
// It accepts what the reference reader (the safetensors library) accepts, except, to leave no room for two
// readings of one file and to bound memory: a header that does not begin with '{'; a name or metadata key
// given twice; fields other than dtype, shape and data_offsets; an entry that is not an object or a dtype
// that is not a string; a __metadata__ that is not an object; dimensions from 2^63 up; and the limits below.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/model/model_file.h"

namespace kvfuse {

inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the reference reader's own
inline constexpr std::uint64_t kMaxTokenBytes = 1 << 20;       // one string, number or run of white space
inline constexpr std::size_t kMaxEntries = 65536;              // tensors and metadata keys together
inline constexpr std::size_t kMaxNameBytes = 512;
inline constexpr std::size_t kMaxRank = 8;

struct SafetensorsDtype {
  std::string_view name;  // as the format spells it: F32, BF16, ...
  std::uint64_t bits = 0;
};

struct TensorEntry {
  std::string name;
  SafetensorsDtype dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  // of its first byte in the file
  std::uint64_t bytes = 0;
};

using SafetensorsMetadata = std::map<std::string, std::string>;

class SafetensorsFile {
 public:
  // Reads and checks the header alone. Throws ModelFileError naming file, tensor and rule.
  static SafetensorsFile open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const std::vector<TensorEntry>& tensors() const { return tensors_; }  // sorted by name
  const TensorEntry* find(std::string_view name) const;                 // null: no such tensor
  const SafetensorsMetadata& metadata() const { return metadata_; }     // the header's "__metadata__"
  // Copies out.size() bytes of a tensor, from its byte `from` on: from + out.size() <= entry.bytes.
  void read(const TensorEntry& entry, std::uint64_t from, std::span<std::byte> out) const;

 private:
  SafetensorsFile(RegularFile file, std::vector<TensorEntry> tensors, SafetensorsMetadata metadata);

  RegularFile file_;
  std::vector<TensorEntry> tensors_;
  SafetensorsMetadata metadata_;
};

std::string shape_text(std::span<const std::int64_t> shape);  // "[768, 2304]"

}  // namespace kvfuse
