// The byte-level BPE as a filter, for tests in Python. A frame is a uint32 count and as many elements.
//   bpe_probe load                        lines "<vocab.bpe> TAB <encoder.json>" in, "ok <tokens>" or
//                                         "refused: <message>" out
//   bpe_probe encode VOCAB ENCODER_JSON   frames of text in; for each a frame of uint16 ids and a frame with
//                                         the text that they decode to out
//   bpe_probe classes                     a byte per code point out: L, N, S(pace), O(ther), - (surrogate)
#include <array>
#include <cstdint>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/text/bpe.h"
#include "csrc/text/token_file.h"

namespace {

void load() {
  for (std::string line; std::getline(std::cin, line);) {
    const std::size_t tab = line.find('\t');
    try {
      const kvfuse::Gpt2Tokenizer bpe(line.substr(0, tab), line.substr(tab + 1));
      std::cout << "ok " << bpe.vocab_size() << std::endl;
    } catch (const kvfuse::DataFileError& error) {
      std::cout << "refused: " << error.what() << std::endl;
    }
  }
}

template <typename Elements>
void write_frame(const Elements& elements) {
  const auto count = static_cast<std::uint32_t>(elements.size());
  std::cout.write(reinterpret_cast<const char*>(&count), sizeof count);
  std::cout.write(reinterpret_cast<const char*>(elements.data()), sizeof elements[0] * count);
}

void encode(const kvfuse::Gpt2Tokenizer& bpe) {
  std::uint32_t bytes = 0;
  while (std::cin.read(reinterpret_cast<char*>(&bytes), sizeof bytes)) {
    std::string text(bytes, '\0');
    std::cin.read(text.data(), bytes);
    const std::vector<std::uint16_t> ids = bpe.encode(text);
    write_frame(ids);
    write_frame(bpe.decode(ids));
    std::cout.flush();
  }
}

std::string utf8(std::uint32_t code) {
  const auto tail = [code](int shift) { return static_cast<char>(0x80 | (code >> shift & 0x3f)); };
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800) return {static_cast<char>(0xc0 | code >> 6), tail(0)};
  if (code < 0x10000) return {static_cast<char>(0xe0 | code >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xf0 | code >> 18), tail(12), tail(6), tail(0)};
}

// A character's class is that of the neighbours with which it shares a piece.
char class_of(const kvfuse::PieceSplitter& splitter, const std::string& character) {
  constexpr std::array<std::string_view, 3> kNeighbours = {"x", "1", "!"};
  for (std::size_t i = 0; i < kNeighbours.size(); ++i) {
    int pieces = 0;
    splitter.split(std::string(kNeighbours[i]) + character + std::string(kNeighbours[i]),
                   [&](std::string_view) { ++pieces; });
    if (pieces == 1) return "LNO"[i];
  }
  return 'S';
}

void classes() {
  const kvfuse::PieceSplitter splitter;
  for (std::uint32_t code = 0; code < 0x110000; ++code)
    std::cout << (code >= 0xd800 && code < 0xe000 ? '-' : class_of(splitter, utf8(code)));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view mode = argc > 1 ? argv[1] : "";
  if (mode == "load" && argc == 2)
    load();
  else if (mode == "encode" && argc == 4)
    encode(kvfuse::Gpt2Tokenizer(argv[2], argv[3]));
  else if (mode == "classes" && argc == 2)
    classes();
  else
    return 2;
}
