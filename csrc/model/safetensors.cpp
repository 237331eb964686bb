#include "csrc/model/safetensors.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <stdexcept>
#include <utility>

#include "csrc/model/safetensors_header.h"

namespace kvfuse {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensor bytes are little-endian and copied as they are");

// Null where 64 bits do not hold the number of bits.
std::optional<std::uint64_t> bits_needed(const TensorEntry& tensor) {
  std::uint64_t bits = 1;
  for (const std::int64_t size : tensor.shape)
    if (__builtin_mul_overflow(bits, static_cast<std::uint64_t>(size), &bits)) return std::nullopt;
  if (__builtin_mul_overflow(bits, tensor.dtype.bits, &bits)) return std::nullopt;
  return bits;
}

// The tensors, in order of their offsets, must fill the data from its first to its last byte.
void check_layout(const std::filesystem::path& path, const std::vector<TensorEntry>& tensors,
                  std::uint64_t data_bytes) {
  std::vector<const TensorEntry*> order;
  for (const TensorEntry& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
  });

  std::uint64_t end = 0;
  for (const TensorEntry* tensor : order) {
    const auto fail = [&](const std::string& problem) {
      throw ModelFileError(path, "tensor " + in_quotes(tensor->name) + ": " + problem);
    };
    if (tensor->offset < end)
      fail("begins at " + std::to_string(tensor->offset) +
           " and overlaps the tensor before it, which ends at " + std::to_string(end));
    if (tensor->offset > end)
      fail("begins at " + std::to_string(tensor->offset) + " and leaves a hole from " + std::to_string(end));
    const std::string what = "shape " + shape_text(tensor->shape) + " x " + std::string(tensor->dtype.name);
    const std::optional<std::uint64_t> bits = bits_needed(*tensor);
    if (!bits) fail(what + " overflows 64 bits");
    if (*bits % 8 != 0) fail(what + " needs " + std::to_string(*bits) + " bits, expected whole bytes");
    if (*bits / 8 != tensor->bytes)
      fail(what + " needs " + std::to_string(*bits / 8) + " bytes, header gives " +
           std::to_string(tensor->bytes));
    end += tensor->bytes;
  }
  if (end != data_bytes)
    throw ModelFileError(path,
                         "expected " + std::to_string(end) + " bytes of tensor data after the header, got " +
                             std::to_string(data_bytes) + (data_bytes < end ? " (the file is cut off)" : ""));
}

std::uint64_t header_length(const RegularFile& file) {
  if (file.size() < kHeaderOffset)
    throw ModelFileError(file.path(), "header: expected 8 bytes that give its length, got a file of " +
                                          std::to_string(file.size()));
  std::uint64_t length = 0;
  file.read(0, std::as_writable_bytes(std::span(&length, 1)));
  if (length < 2 || length > kMaxHeaderBytes)
    throw ModelFileError(file.path(), "header: expected a length of 2 to " + std::to_string(kMaxHeaderBytes) +
                                          " bytes, got " + std::to_string(length) +
                                          " (is it a safetensors file?)");
  if (length > file.size() - kHeaderOffset)
    throw ModelFileError(file.path(), "header: its length of " + std::to_string(length) +
                                          " bytes runs past the end of the file of " +
                                          std::to_string(file.size()));
  return length;
}

}  // namespace

SafetensorsFile::SafetensorsFile(RegularFile file, std::vector<TensorEntry> tensors,
                                 SafetensorsMetadata metadata)
    : file_(std::move(file)), tensors_(std::move(tensors)), metadata_(std::move(metadata)) {}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  RegularFile file(path);
  const std::uint64_t length = header_length(file);
  auto [tensors, metadata] = parse_safetensors_header(file, length);
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  const auto twin = std::adjacent_find(tensors.begin(), tensors.end(),
                                       [](const auto& a, const auto& b) { return a.name == b.name; });
  if (twin != tensors.end())
    throw ModelFileError(path, "tensor " + in_quotes(twin->name) + ": is given twice");
  check_layout(path, tensors, file.size() - kHeaderOffset - length);
  for (TensorEntry& tensor : tensors) tensor.offset += kHeaderOffset + length;
  return {std::move(file), std::move(tensors), std::move(metadata)};
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto place = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                      [](const TensorEntry& a, std::string_view b) { return a.name < b; });
  return place != tensors_.end() && place->name == name ? &*place : nullptr;
}

void SafetensorsFile::read(const TensorEntry& entry, std::uint64_t from, std::span<std::byte> out) const {
  if (from > entry.bytes || out.size() > entry.bytes - from)
    throw std::out_of_range("safetensors: expected a read within the " + std::to_string(entry.bytes) +
                            " bytes of tensor " + in_quotes(entry.name));
  file_.read(entry.offset + from, out);
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

}  // namespace kvfuse
