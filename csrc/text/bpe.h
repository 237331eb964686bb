// GPT-2's byte-level BPE: text to token ids and back, with the ids that tiktoken's "gpt2" gives.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/text/bpe_vocabulary.h"
#include "csrc/text/pieces.h"

namespace kvfuse {

// The token that two neighbours make, by a hash of both ids.
class MergeTable {
 public:
  // No merge makes the last id: that is kEndOfText.
  static constexpr std::uint16_t kNone = kMaxVocabularySize - 1;

  explicit MergeTable(const std::vector<BpeVocabulary::Merge>& merges);

  std::uint16_t find(std::uint16_t left, std::uint16_t right) const {
    const std::uint32_t pair = pair_of(left, right);
    std::size_t at = slot_of(pair);
    while (slots_[at].merged != kNone && slots_[at].pair != pair) at = (at + 1) & (slots_.size() - 1);
    return slots_[at].merged;
  }

 private:
  struct Slot {
    std::uint32_t pair = 0;
    std::uint16_t merged = kNone;
  };
  static std::uint32_t pair_of(std::uint16_t left, std::uint16_t right) {
    return std::uint32_t{left} << 16 | right;
  }
  std::size_t slot_of(std::uint32_t pair) const { return (pair * 0x9e3779b97f4a7c15U) >> shift_; }

  int shift_;
  std::vector<Slot> slots_;  // a power of two, at most half full
};

// Encoding and decoding change nothing: any number of threads may share one tokenizer.
class Gpt2Tokenizer {
 public:
  // Throws DataFileError on damaged files, and on merges out of order, for which tiktoken's ids would not
  // follow from the merges.
  Gpt2Tokenizer(const std::filesystem::path& vocab_bpe, const std::filesystem::path& encoder_json);
  // `folder` holds both files under their own names.
  static Gpt2Tokenizer from_folder(const std::filesystem::path& folder);

  // The ids of encode_ordinary: names of special tokens are text like any other. What is no UTF-8 becomes
  // U+FFFD as by replace_invalid_utf8. The time grows as n log n even if all is one piece. Throws
  // std::length_error above 4 GiB, std::runtime_error if pcre2 gives up.
  std::vector<std::uint16_t> encode(std::string_view text) const;

  // The bytes of the tokens; UTF-8 only if no character is cut. Throws std::out_of_range on an unknown id.
  std::string decode(std::span<const std::uint16_t> ids) const;

  std::int64_t vocab_size() const { return static_cast<std::int64_t>(vocabulary_.tokens.size()); }
  std::uint16_t end_of_text() const { return static_cast<std::uint16_t>(vocab_size() - 1); }  // kEndOfText's

 private:
  BpeVocabulary vocabulary_;
  MergeTable merges_;
  std::vector<std::uint16_t> byte_ids_;  // by byte
  PieceSplitter splitter_;
};

}  // namespace kvfuse
