#include "csrc/model/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

namespace kvfuse {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";

constexpr std::array<SafetensorsDtype, 22> kDtypes = {
    {{"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
     {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
     {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
     {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}}};

// Feeds the header to the parser in small pieces, so a header that claims to be huge costs neither memory nor
// time.
class HeaderStream {
 public:
  HeaderStream(const RegularFile& file, std::uint64_t length) : file_(file), length_(length) { refill(); }

  bool done() const { return position_ == length_; }
  char current() const { return buffer_[position_ - buffer_start_]; }
  void advance() {
    ++position_;
    if (!done() && position_ - buffer_start_ == buffer_.size()) refill();
  }
  void token_ends() { token_start_ = position_; }

 private:
  void refill() {
    if (position_ - token_start_ > kMaxTokenBytes)
      throw ModelFileError(file_.path(), "header: expected strings, numbers and white space of at most " +
                                             std::to_string(kMaxTokenBytes) + " bytes, got more from byte " +
                                             std::to_string(token_start_) + " on");
    buffer_start_ = position_;
    const std::uint64_t count = std::min<std::uint64_t>(buffer_.size(), length_ - position_);
    const std::span<char> piece(buffer_.data(), count);
    file_.read(kHeaderOffset + position_, std::as_writable_bytes(piece));
    // The parser would take a NUL for the end of its input.
    if (const void* nul = std::memchr(piece.data(), 0, count))
      throw ModelFileError(file_.path(),
                           "header: NUL at byte " +
                               std::to_string(position_ + (static_cast<const char*>(nul) - piece.data())));
  }

  const RegularFile& file_;
  const std::uint64_t length_;
  std::uint64_t position_ = 0;
  std::uint64_t buffer_start_ = 0;
  std::uint64_t token_start_ = 0;
  std::array<char, 16384> buffer_;
};

// An input iterator over the stream; a null stream is the end.
struct HeaderIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = char;

  char operator*() const { return stream->current(); }
  HeaderIterator& operator++() {
    stream->advance();
    return *this;
  }
  bool operator==(const HeaderIterator&) const { return stream == nullptr || stream->done(); }

  HeaderStream* stream = nullptr;
};

// Takes the header apart as it is parsed. Whatever the format does not allow at a place throws there, so
// nesting never goes deeper than three levels and no number is ever converted.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderHandler(const std::filesystem::path& path, HeaderStream& stream) : path_(path), stream_(stream) {}

  SafetensorsHeader take() { return {std::move(tensors_), std::move(metadata_)}; }

  bool null() override { refuse("null"); }
  bool boolean(bool) override { refuse("a boolean"); }
  bool number_integer(number_integer_t) override { refuse("a negative number"); }
  bool number_float(number_float_t, const string_t& text) override {
    refuse("the number " + in_quotes(text));
  }
  bool binary(binary_t&) override { refuse("binary data"); }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& text) override;
  bool start_object(std::size_t) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool key(string_t& name) override;
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) override {
    fail("expected valid JSON in UTF-8, got an error at byte " + std::to_string(position));
  }

 private:
  enum class Place { kStart, kHeader, kMetadata, kTensor, kShape, kOffsets, kEnd };
  enum class Field { kNone, kDtype, kShape, kOffsets };

  [[noreturn]] void fail(const std::string& problem) const;
  [[noreturn]] void refuse(const std::string& got) const { fail("expected " + expected() + ", got " + got); }
  std::string expected() const;
  void tensor_key(const std::string& name);
  void finish_tensor();

  const std::filesystem::path& path_;
  HeaderStream& stream_;
  Place place_ = Place::kStart;
  SafetensorsMetadata metadata_;
  bool metadata_seen_ = false;
  std::vector<TensorEntry> tensors_;

  // The entry being read.
  std::string name_;
  Field field_ = Field::kNone;
  std::optional<SafetensorsDtype> dtype_;
  std::optional<std::vector<std::int64_t>> shape_;
  std::optional<std::vector<std::uint64_t>> offsets_;
};

void HeaderHandler::fail(const std::string& problem) const {
  const bool inside = place_ == Place::kTensor || place_ == Place::kShape || place_ == Place::kOffsets;
  throw ModelFileError(path_,
                       (inside ? "tensor " + in_quotes(name_) : std::string("header")) + ": " + problem);
}

std::string HeaderHandler::expected() const {
  switch (place_) {
    case Place::kStart:
      return "a JSON object";
    case Place::kHeader:
      return "an object for " + in_quotes(name_);
    case Place::kMetadata:
      return "strings only in " + std::string(kMetadataKey);
    case Place::kShape:
      return "a shape of unsigned integers below 2^63";
    case Place::kOffsets:
      return "data_offsets of two unsigned 64-bit integers";
    default:
      return field_ == Field::kDtype ? "a string as dtype" : "an array as shape and data_offsets";
  }
}

bool HeaderHandler::number_unsigned(number_unsigned_t value) {
  stream_.token_ends();
  if (place_ == Place::kShape) {
    if (value > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) refuse(std::to_string(value));
    if (shape_->size() == kMaxRank)
      fail("expected a shape of at most " + std::to_string(kMaxRank) + " dimensions, got more");
    shape_->push_back(static_cast<std::int64_t>(value));
  } else if (place_ == Place::kOffsets) {
    if (offsets_->size() == 2) refuse("more");
    offsets_->push_back(value);
  } else {
    refuse("the number " + std::to_string(value));
  }
  return true;
}

bool HeaderHandler::string(string_t& text) {
  stream_.token_ends();
  if (place_ == Place::kMetadata) {
    metadata_[name_] = text;
    return true;
  }
  if (place_ != Place::kTensor || field_ != Field::kDtype) refuse("the string " + in_quotes(text));
  const auto row =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& d) { return d.name == text; });
  if (row == kDtypes.end()) fail("unknown dtype " + in_quotes(text));
  dtype_ = *row;
  return true;
}

bool HeaderHandler::start_object(std::size_t) {
  stream_.token_ends();
  if (place_ == Place::kStart) {
    place_ = Place::kHeader;
  } else if (place_ == Place::kHeader && name_ == kMetadataKey) {
    place_ = Place::kMetadata;
  } else if (place_ == Place::kHeader) {
    place_ = Place::kTensor;
    field_ = Field::kNone;
    dtype_.reset();
    shape_.reset();
    offsets_.reset();
  } else {
    refuse("an object");
  }
  return true;
}

bool HeaderHandler::end_object() {
  stream_.token_ends();
  if (place_ == Place::kTensor) finish_tensor();
  place_ = place_ == Place::kHeader ? Place::kEnd : Place::kHeader;
  return true;
}

bool HeaderHandler::start_array(std::size_t) {
  stream_.token_ends();
  if (place_ == Place::kTensor && field_ == Field::kShape) {
    place_ = Place::kShape;
    shape_.emplace();
  } else if (place_ == Place::kTensor && field_ == Field::kOffsets) {
    place_ = Place::kOffsets;
    offsets_.emplace();
  } else {
    refuse("an array");
  }
  return true;
}

bool HeaderHandler::end_array() {
  stream_.token_ends();
  if (place_ == Place::kOffsets && offsets_->size() != 2) refuse(std::to_string(offsets_->size()));
  place_ = Place::kTensor;
  return true;
}

bool HeaderHandler::key(string_t& name) {
  stream_.token_ends();
  if (place_ == Place::kTensor) {
    tensor_key(name);
    return true;
  }
  if (name.size() > kMaxNameBytes)
    fail("expected names of at most " + std::to_string(kMaxNameBytes) + " bytes, got one of " +
         std::to_string(name.size()) + ": " + in_quotes(name));
  if (tensors_.size() + metadata_.size() == kMaxEntries)
    fail("expected at most " + std::to_string(kMaxEntries) + " tensors and metadata keys, got more");
  if (place_ == Place::kMetadata) {
    if (!metadata_.try_emplace(name).second) fail("metadata key " + in_quotes(name) + " is given twice");
    name_ = name;
    return true;
  }
  if (name == kMetadataKey && std::exchange(metadata_seen_, true)) fail(in_quotes(name) + " is given twice");
  name_ = name;
  return true;
}

void HeaderHandler::tensor_key(const std::string& name) {
  field_ = name == "dtype"          ? Field::kDtype
           : name == "shape"        ? Field::kShape
           : name == "data_offsets" ? Field::kOffsets
                                    : Field::kNone;
  if (field_ == Field::kNone)
    fail("unknown field " + in_quotes(name) + " (known: dtype, shape, data_offsets)");
  const bool again = (field_ == Field::kDtype && dtype_) || (field_ == Field::kShape && shape_) ||
                     (field_ == Field::kOffsets && offsets_);
  if (again) fail("field " + in_quotes(name) + " is given twice");
}

void HeaderHandler::finish_tensor() {
  if (!dtype_ || !shape_ || !offsets_)
    fail(std::string("field '") + (!dtype_ ? "dtype" : !shape_ ? "shape" : "data_offsets") + "' is missing");
  const auto [begin, end] = std::pair((*offsets_)[0], (*offsets_)[1]);
  if (begin > end)
    fail("expected data_offsets in order, got [" + std::to_string(begin) + ", " + std::to_string(end) + "]");
  tensors_.push_back({name_, *dtype_, std::move(*shape_), begin, end - begin});
}

}  // namespace

SafetensorsHeader parse_safetensors_header(const RegularFile& file, std::uint64_t length) {
  HeaderStream stream(file, length);
  if (stream.current() != '{') throw ModelFileError(file.path(), "header: expected it to begin with '{'");
  HeaderHandler handler(file.path(), stream);
  nlohmann::json::sax_parse(HeaderIterator{&stream}, HeaderIterator{}, &handler);
  return handler.take();
}

}  // namespace kvfuse
