// libFuzzer entry: no bytes make the safetensors reader do anything but accept them or throw ModelFileError.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "csrc/model/safetensors.h"
#include "tests/cpp/memory_file.h"

// An odd first byte puts the right length before what follows, up to its last brace, so that inputs soon
// reach the checks behind the length.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  std::vector<std::uint8_t> bytes(data + 1, data + size);
  if (data[0] % 2 == 1) {
    const std::uint64_t length = bytes.rend() - std::find(bytes.rbegin(), bytes.rend(), '}');
    bytes.insert(bytes.begin(), 8, 0);
    std::memcpy(bytes.data(), &length, 8);
  }

  static const kvfuse::MemoryFile memory("weights");
  const std::string path = memory.holding({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  try {
    const kvfuse::SafetensorsFile file = kvfuse::SafetensorsFile::open(path);
    for (const kvfuse::TensorEntry& entry : file.tensors()) {
      std::vector<std::byte> out(entry.bytes);
      file.read(entry, 0, out);
    }
  } catch (const kvfuse::ModelFileError&) {
  }
  return 0;
}
