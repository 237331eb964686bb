// libFuzzer entry: no bytes make the safetensors reader do anything but accept them or throw ModelFileError.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "csrc/model/safetensors.h"

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

  static const int descriptor = ::memfd_create("fuzz", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  if (::ftruncate(descriptor, 0) != 0 ||
      ::pwrite(descriptor, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
    std::abort();
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
