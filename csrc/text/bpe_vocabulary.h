// Reads the two files of a GPT-2 vocabulary: vocab.bpe, the merges in order, and encoder.json, the ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace kvfuse {

inline constexpr std::string_view kEndOfText = "<|endoftext|>";
inline constexpr std::size_t kByteTokens = 256;           // ids below are single bytes
inline constexpr std::size_t kMaxVocabularySize = 65536;  // ids are uint16, as in token files

struct BpeVocabulary {
  struct Merge {
    std::uint16_t left;
    std::uint16_t right;
  };
  std::vector<Merge> merges;        // merge i makes token kByteTokens + i of two tokens with smaller ids
  std::vector<std::string> tokens;  // bytes by id: single bytes, results of merges, kEndOfText
};

// The line of vocab.bpe, counted from 1, that makes a token from kByteTokens up.
inline std::size_t merge_line(std::size_t id) { return id - kByteTokens + 2; }

// Bytes in double quotes for a message: ASCII only, shortened if need be.
std::string in_json_quotes(std::string_view text);

// Throws DataFileError on anything but two whole files that fit each other. Every token must have the id of
// its place in the order above, because tiktoken merges in the order of ids.
BpeVocabulary read_bpe_vocabulary(const std::filesystem::path& vocab_bpe,
                                  const std::filesystem::path& encoder_json);

}  // namespace kvfuse
