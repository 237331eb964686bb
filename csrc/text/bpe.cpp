// Merges byte pairs with a heap over a linked list, the smallest id first and the leftmost of equal ones.
#include "csrc/text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <stdexcept>

#include "csrc/text/token_file.h"
#include "csrc/text/utf8.h"

namespace kvfuse {
namespace {

constexpr std::uint32_t kEnd = std::numeric_limits<std::uint32_t>::max();  // before the first, after the last

// Merges one piece after the other; keeps its memory between them.
class PieceMerger {
 public:
  PieceMerger(const MergeTable& merges, std::span<const std::uint16_t> byte_ids)
      : merges_(merges), byte_ids_(byte_ids) {}

  // Appends the ids of a piece that isn't empty.
  void append(std::string_view piece, std::vector<std::uint16_t>& ids) {
    start(piece);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      const std::uint64_t candidate = heap_.back();
      heap_.pop_back();
      const auto at = static_cast<std::uint32_t>(candidate);
      // Otherwise a neighbour has been merged since, or the part itself.
      if (parts_[at].merged == candidate >> 32) merge(at);
    }
    for (std::uint32_t at = 0; at != kEnd; at = parts_[at].next) ids.push_back(parts_[at].id);
  }

 private:
  struct Part {
    std::uint32_t previous;
    std::uint32_t next;
    std::uint16_t id;
    std::uint16_t merged;  // what this part and the next one make, or MergeTable::kNone
  };

  void start(std::string_view piece) {
    const auto count = static_cast<std::uint32_t>(piece.size());
    parts_.clear();
    for (std::uint32_t i = 0; i < count; ++i)
      parts_.push_back({i - 1, i + 1, byte_ids_[static_cast<unsigned char>(piece[i])], MergeTable::kNone});
    parts_.front().previous = kEnd;
    parts_.back().next = kEnd;
    heap_.clear();
    for (std::uint32_t i = 0; i + 1 < count; ++i)
      if (find_merge(i)) heap_.push_back(candidate(i));
    std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
  }

  void merge(std::uint32_t at) {
    Part& part = parts_[at];
    Part& right = parts_[part.next];
    part.id = part.merged;
    part.next = right.next;
    right.merged = MergeTable::kNone;
    if (part.next != kEnd) parts_[part.next].previous = at;
    push(at);
    if (part.previous != kEnd) push(part.previous);
  }

  bool find_merge(std::uint32_t at) {
    Part& part = parts_[at];
    part.merged = part.next == kEnd ? MergeTable::kNone : merges_.find(part.id, parts_[part.next].id);
    return part.merged != MergeTable::kNone;
  }

  void push(std::uint32_t at) {
    if (!find_merge(at)) return;
    heap_.push_back(candidate(at));
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  }

  std::uint64_t candidate(std::uint32_t at) const { return std::uint64_t{parts_[at].merged} << 32 | at; }

  const MergeTable& merges_;
  std::span<const std::uint16_t> byte_ids_;
  std::vector<Part> parts_;
  std::vector<std::uint64_t> heap_;  // what a pair makes in the upper half, its left part in the lower
};

}  // namespace

MergeTable::MergeTable(const std::vector<BpeVocabulary::Merge>& merges)
    : slots_(std::bit_ceil(2 * merges.size() + 2)) {
  shift_ = 64 - std::countr_zero(slots_.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const std::uint32_t pair = pair_of(merges[i].left, merges[i].right);
    std::size_t at = slot_of(pair);
    while (slots_[at].merged != kNone) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = {pair, static_cast<std::uint16_t>(kByteTokens + i)};
  }
}

Gpt2Tokenizer::Gpt2Tokenizer(const std::filesystem::path& vocab_bpe,
                             const std::filesystem::path& encoder_json)
    : vocabulary_(read_bpe_vocabulary(vocab_bpe, encoder_json)),
      merges_(vocabulary_.merges),
      byte_ids_(kByteTokens) {
  const std::vector<std::string>& tokens = vocabulary_.tokens;
  for (std::size_t id = 0; id < kByteTokens; ++id)
    byte_ids_[static_cast<unsigned char>(tokens[id][0])] = static_cast<std::uint16_t>(id);

  // tiktoken takes a piece that is a token as it is, and joins two neighbours whenever their bytes together
  // are a token, whichever merge made it. Where every token's bytes merge into that token, the two that stand
  // side by side at last are those of its merge, so both ways give the same ids. Merges in the order in which
  // they were learned are so.
  PieceMerger merger(merges_, byte_ids_);
  std::vector<std::uint16_t> ids;
  for (std::size_t id = kByteTokens; id + 1 < tokens.size(); ++id) {
    ids.clear();
    merger.append(tokens[id], ids);
    if (ids.size() != 1) {
      throw DataFileError(fmt::format(
          "{}: line {}: expected a merge that its token's bytes lead to, got {}, whose bytes merge into {} "
          "tokens (lines are missing or out of order)",
          vocab_bpe.string(), merge_line(id), in_json_quotes(tokens[id]), ids.size()));
    }
  }
}

Gpt2Tokenizer Gpt2Tokenizer::from_folder(const std::filesystem::path& folder) {
  return Gpt2Tokenizer(folder / "vocab.bpe", folder / "encoder.json");
}

std::vector<std::uint16_t> Gpt2Tokenizer::encode(std::string_view text) const {
  std::string repaired;
  if (valid_utf8_bytes(text) != text.size()) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  if (text.size() >= kEnd)
    throw std::length_error(
        fmt::format("encode: expected a text of less than {} bytes, got {}", kEnd, text.size()));
  std::vector<std::uint16_t> ids;
  ids.reserve(text.size() / 4);  // English has more than four bytes per token
  PieceMerger merger(merges_, byte_ids_);
  splitter_.split(text, [&](std::string_view piece) { merger.append(piece, ids); });
  return ids;
}

std::string Gpt2Tokenizer::decode(std::span<const std::uint16_t> ids) const {
  std::string text;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= vocab_size()) {
      throw std::out_of_range(fmt::format("decode: token {} of {}: expected an id below {}, got {}", i,
                                          ids.size(), vocab_size(), ids[i]));
    }
    text += vocabulary_.tokens[ids[i]];
  }
  return text;
}

}  // namespace kvfuse
