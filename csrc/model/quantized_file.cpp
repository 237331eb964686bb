#include "csrc/model/quantized_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "csrc/model/gpt2_checkpoint.h"
#include "csrc/model/safetensors_header.h"

namespace kvfuse {
namespace {

constexpr std::size_t kAlignment = 64;  // of the data in the file

const char* dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kChar:
      return "I8";
    case at::kByte:
      return "U8";
    case at::kBFloat16:
      return "BF16";
    case at::kHalf:
      return "F16";
    case at::kDouble:
      return "F64";
    default:
      return "F32";
  }
}

// With its length before it, and spaces behind it to where the data begins.
std::string header_bytes(const std::vector<NamedTensor>& tensors, const Gpt2Weights& weights) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{kQuantizedVersionKey, kQuantizedVersion},
                            {kWeightDtypeKey, weight_dtype_name(weights.weight_dtype())},
                            {kGeluTanhKey, weights.gelu_tanh ? "true" : "false"}};
  std::size_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t begin = end;
    end += tensor->nbytes();
    header[name] = {
        {"dtype", dtype_of(*tensor)}, {"shape", tensor->sizes().vec()}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.append((kAlignment - (kHeaderOffset + text.size()) % kAlignment) % kAlignment, ' ');
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

// A file that is gone again unless it was published.
class NewFile {
 public:
  explicit NewFile(const std::filesystem::path& path)
      : path_(path),
        partial_(path.string() + ".partial"),
        descriptor_(open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
    if (descriptor_ < 0) fail();
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (descriptor_ < 0) return;
    close(descriptor_);
    unlink(partial_.c_str());
  }

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail();
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
  }

  void publish() {
    if (fsync(descriptor_) != 0) fail();
    std::filesystem::rename(partial_, path_);
    close(descriptor_);
    descriptor_ = -1;
  }

 private:
  [[noreturn]] void fail() const {
    throw std::filesystem::filesystem_error("cannot write", path_,
                                            std::error_code(errno, std::generic_category()));
  }

  std::filesystem::path path_, partial_;
  int descriptor_;
};

}  // namespace

void write_quantized_weights(const std::filesystem::path& file, const Gpt2Weights& weights) {
  if (weights.weight_dtype() == WeightDtype::kModel || weights.sharing_group != 1)
    throw std::invalid_argument(
        "write_quantized_weights: expected quantised weights in which every layer owns its K and V");
  Gpt2Weights views = weights;
  const std::vector<NamedTensor> tensors = views.tensors();
  NewFile out(file);
  out.write(header_bytes(tensors, weights));
  for (const auto& [name, tensor] : tensors)
    out.write({static_cast<const char*>(tensor->const_data_ptr()), tensor->nbytes()});
  out.publish();
}

}  // namespace kvfuse
