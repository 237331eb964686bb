// Small vocabularies for tests: vocab.bpe and the encoder.json that belongs to it.
#pragma once

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>

namespace kvfuse {

// How the files spell a byte, and in which order: printable ones first.
inline std::string spelled_byte(int position) {
  const auto utf8 = [](int code) {
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    return std::string{static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
  };
  if (position < 94) return utf8(0x21 + position);        // '!' to '~'
  if (position < 106) return utf8(0xa1 + position - 94);  // without the soft hyphen
  if (position < 188) return utf8(0xae + position - 106);
  return utf8(0x100 + position - 188);
}

// Gives every line after the first the next id, whatever the line holds.
inline nlohmann::ordered_json encoder_for(const std::string& vocab_bpe) {
  nlohmann::ordered_json ids;
  for (int position = 0; position < 256; ++position) ids[spelled_byte(position)] = position;
  std::istringstream lines(vocab_bpe);
  int id = 256;
  std::string line;
  std::getline(lines, line);
  for (std::string left, right; std::getline(lines, line); ++id) {
    std::istringstream words(line);
    words >> left >> right;
    ids[left + right] = id;
  }
  ids["<|endoftext|>"] = id;
  return ids;
}

}  // namespace kvfuse
