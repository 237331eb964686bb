// vocab.bpe line by line, then encoder.json against what vocab.bpe makes of every id.
#include "csrc/text/bpe_vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <utility>

#include "csrc/text/data_file.h"
#include "csrc/text/utf8.h"

namespace kvfuse {
namespace {

constexpr std::uintmax_t kMaxFileBytes = 16 << 20;  // GPT-2's have 0.5 and 1.0 MB
constexpr std::size_t kMaxQuotedBytes = 60;

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& problem) {
  throw DataFileError(path.string() + ": " + problem);
}

std::string read_whole(const std::filesystem::path& path) {
  return read_data_file(path, "vocabulary file", kMaxFileBytes);
}

// How the vocabulary files spell bytes: those that print in Latin-1 by themselves and first, the others by
// the characters from U+0100 on.
struct ByteToken {
  char byte;
  std::string spelling;
};

std::vector<ByteToken> byte_tokens() {
  const auto prints = [](int b) { return (b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad); };
  const auto utf8 = [](int code) {
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    return std::string{static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
  };
  std::vector<ByteToken> tokens;
  for (int b = 0; b < 256; ++b)
    if (prints(b)) tokens.push_back({static_cast<char>(b), utf8(b)});
  int code = 0x100;
  for (int b = 0; b < 256; ++b)
    if (!prints(b)) tokens.push_back({static_cast<char>(b), utf8(code++)});
  return tokens;
}

using IdBySpelling = std::unordered_map<std::string, std::uint16_t>;

// Takes vocab.bpe apart; the result has a merge and a token for every line, and every spelling its id.
class MergeReader {
 public:
  explicit MergeReader(const std::filesystem::path& path) : path_(path) {
    for (const auto& [byte, spelling] : byte_tokens()) {
      ids_.emplace(spelling, vocabulary_.tokens.size());
      vocabulary_.tokens.emplace_back(1, byte);
    }
  }

  void read() {
    const std::string text = read_whole(path_);
    if (text.back() != '\n') fail(path_, "expected a line end as the last byte: the file is cut off");
    std::string_view rest = text;
    for (line_ = 1; !rest.empty(); ++line_) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(line.size() + 1);
      if (const std::size_t valid = valid_utf8_bytes(line); valid != line.size())
        fail_at_line(fmt::format("expected UTF-8, got byte 0x{:02x} at byte {} of the line",
                                 static_cast<unsigned char>(line[valid]), valid));
      line_ == 1 ? check_version(line) : add_merge(line);
    }
    ids_.emplace(kEndOfText, vocabulary_.tokens.size());
    vocabulary_.tokens.emplace_back(kEndOfText);
  }

  const IdBySpelling& ids() const { return ids_; }
  BpeVocabulary take() { return std::move(vocabulary_); }

 private:
  [[noreturn]] void fail_at_line(const std::string& problem) const {
    fail(path_, fmt::format("line {}: {}", line_, problem));
  }

  void check_version(std::string_view line) const {
    if (!line.starts_with("#version:"))
      fail_at_line(fmt::format("expected it to begin with \"#version:\", got {}", in_json_quotes(line)));
  }

  void add_merge(std::string_view line) {
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
      fail_at_line(
          fmt::format("expected two tokens with one space between them, got {}", in_json_quotes(line)));
    if (vocabulary_.tokens.size() + 1 == kMaxVocabularySize)
      fail_at_line(fmt::format("expected at most {} merges, got more", kMaxVocabularySize - kByteTokens - 1));
    const std::uint16_t left = known(line.substr(0, space));
    const std::uint16_t right = known(line.substr(space + 1));
    const std::size_t id = vocabulary_.tokens.size();
    const std::string spelling = std::string(line.substr(0, space)) + std::string(line.substr(space + 1));
    if (spelling == kEndOfText)
      fail_at_line(fmt::format("expected no merge that makes {}, the name of a special token", kEndOfText));
    const auto [earlier, is_new] = ids_.emplace(spelling, id);
    if (!is_new)
      fail_at_line(fmt::format("expected a new token, got {}, which line {} makes already",
                               in_json_quotes(spelling), merge_line(earlier->second)));
    vocabulary_.merges.push_back({left, right});
    vocabulary_.tokens.push_back(vocabulary_.tokens[left] + vocabulary_.tokens[right]);
  }

  std::uint16_t known(std::string_view spelling) const {
    const auto found = ids_.find(std::string(spelling));
    if (found == ids_.end())
      fail_at_line(fmt::format("expected a byte or a token that a line above makes, got {}",
                               in_json_quotes(spelling)));
    return found->second;
  }

  const std::filesystem::path& path_;
  std::size_t line_ = 0;
  IdBySpelling ids_;
  BpeVocabulary vocabulary_;
};

// Compares encoder.json with the ids that follow from vocab.bpe while it is parsed. Anything but one flat
// object of numbers throws where it begins, so nothing nests.
class EncoderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  EncoderHandler(const std::filesystem::path& path, const IdBySpelling& ids)
      : path_(path), ids_(ids), seen_(ids.size(), false) {}

  bool null() override { refuse("null"); }
  bool boolean(bool) override { refuse("a boolean"); }
  bool number_integer(number_integer_t value) override { refuse(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { refuse(in_json_quotes(text)); }
  bool string(string_t& text) override { refuse("the string " + in_json_quotes(text)); }
  bool binary(binary_t&) override { refuse("binary data"); }
  bool start_array(std::size_t) override { refuse("an array"); }
  bool end_array() override { return true; }

  bool start_object(std::size_t) override {
    if (entries_ > 0) refuse("an object");
    return true;
  }
  bool key(string_t& spelling) override {
    ++entries_;
    entry_ = ids_.find(spelling);
    if (entry_ == ids_.end())
      fail(path_, fmt::format("entry {}: expected a byte, a token that vocab.bpe makes or {}, got {}",
                              entries_, kEndOfText, in_json_quotes(spelling)));
    if (seen_[entry_->second])
      fail(path_, fmt::format("entry {}: token {} is given twice", entries_, in_json_quotes(spelling)));
    seen_[entry_->second] = true;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (entries_ == 0 || value != entry_->second) refuse(std::to_string(value));
    return true;
  }
  bool end_object() override {
    const auto missing = std::find(seen_.begin(), seen_.end(), false);
    if (missing == seen_.end()) return true;
    const auto id = static_cast<std::size_t>(missing - seen_.begin());
    const auto token =
        std::find_if(ids_.begin(), ids_.end(), [id](const auto& entry) { return entry.second == id; });
    fail(path_, fmt::format("expected {} entries, got {}: token {} with id {} is missing", seen_.size(),
                            entries_, in_json_quotes(token->first), id));
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) override {
    fail(path_, fmt::format("expected valid JSON in UTF-8, got an error at byte {}, after {} entries",
                            position, entries_));
  }

 private:
  [[noreturn]] void refuse(const std::string& got) const {
    if (entries_ == 0) fail(path_, "expected a JSON object of ids by token, got " + got);
    fail(path_, fmt::format("entry {}: expected id {} for token {} (its place in vocab.bpe), got {}",
                            entries_, entry_->second, in_json_quotes(entry_->first), got));
  }

  const std::filesystem::path& path_;
  const IdBySpelling& ids_;
  std::vector<bool> seen_;
  std::size_t entries_ = 0;
  IdBySpelling::const_iterator entry_;
};

}  // namespace

std::string in_json_quotes(std::string_view text) {
  const bool whole = text.size() <= kMaxQuotedBytes;
  return nlohmann::json(text.substr(0, kMaxQuotedBytes))
             .dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace) +
         (whole ? "" : "...");
}

BpeVocabulary read_bpe_vocabulary(const std::filesystem::path& vocab_bpe,
                                  const std::filesystem::path& encoder_json) {
  MergeReader merges(vocab_bpe);
  merges.read();
  const std::string text = read_whole(encoder_json);
  // The parser would take a NUL for the end of its input.
  if (const std::size_t nul = text.find('\0'); nul != std::string::npos)
    fail(encoder_json, fmt::format("expected JSON, got a NUL at byte {}", nul));
  EncoderHandler handler(encoder_json, merges.ids());
  nlohmann::json::sax_parse(text, &handler);
  return merges.take();
}

}  // namespace kvfuse
