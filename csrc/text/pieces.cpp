// GPT-2's pattern for pcre2, with the character classes that tiktoken has.
#include "csrc/text/pieces.h"

#include <fmt/format.h>

#include <array>
#include <new>
#include <stdexcept>
#include <string>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace kvfuse {
namespace {

// Unicode's White_Space. pcre2's \s would add U+180E, which has not been white space since Unicode 6.3.
constexpr const char* kSpace =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// pcre2 10.42 knows the letters and numbers of Unicode 14, tiktoken 0.14 those of Unicode 16: the rest are
// named here. ASCII is named because a class looks that up in a table and walks all else.
constexpr const char* kLetter =
    R"(A-Za-z\p{L}\x{1c89}\x{1c8a}\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3}\x{10d4a}-\x{10d65})"
    R"(\x{10d6f}-\x{10d85}\x{10ec2}-\x{10ec4}\x{1123f}\x{11240}\x{11380}-\x{11389}\x{1138b}\x{1138e})"
    R"(\x{11390}-\x{113b5}\x{113b7}\x{113d1}\x{113d3}\x{11bc0}-\x{11be0}\x{11f02}\x{11f04}-\x{11f10})"
    R"(\x{11f12}-\x{11f33}\x{1342f}\x{13441}-\x{13446}\x{13460}-\x{143fa}\x{16100}-\x{1611d})"
    R"(\x{16d40}-\x{16d6c}\x{18cff}\x{1b132}\x{1b155}\x{1df25}-\x{1df2a}\x{1e030}-\x{1e06d})"
    R"(\x{1e4d0}-\x{1e4eb}\x{1e5d0}-\x{1e5ed}\x{1e5f0}\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";
constexpr const char* kNumber =
    R"(0-9\p{N}\x{10d40}-\x{10d49}\x{116d0}-\x{116e3}\x{11bf0}-\x{11bf9}\x{11f50}-\x{11f59})"
    R"(\x{16130}-\x{16139}\x{16d70}-\x{16d79}\x{1ccf0}-\x{1ccf9}\x{1d2c0}-\x{1d2d3}\x{1e4f0}-\x{1e4f9})"
    R"(\x{1e5f1}-\x{1e5fa})";

// The original: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// Possessive where giving characters back can't lead to a match.
std::string pattern() {
  return fmt::format(
      "'(?:[stmd]|re|ve|ll)| ?[{letter}]++| ?[{number}]++| ?[^{space}{letter}{number}]++|"
      "[{space}]+(?![^{space}])|[{space}]++",
      fmt::arg("letter", kLetter), fmt::arg("number", kNumber), fmt::arg("space", kSpace));
}

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

void PieceSplitter::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

PieceSplitter::PieceSplitter(std::uint32_t match_limit) : match_limit_(match_limit) {
  const std::string text = pattern();
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &offset, nullptr));
  if (!code_) {
    throw std::runtime_error(fmt::format("PieceSplitter: pcre2 refuses GPT-2's pattern at byte {}: {}",
                                         offset, message_of(error)));
  }
  // Where memory can't be made executable, pcre2 goes on without its compiler, only slower.
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
}

void PieceSplitter::split(std::string_view text, const std::function<void(std::string_view)>& take) const {
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  if (!context || !match) throw std::bad_alloc();
  pcre2_set_match_limit(context.get(), match_limit_);
  for (std::size_t start = 0; start < text.size();) {
    // Without PCRE2_NO_UTF_CHECK, every call would read the whole rest of the text.
    const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                                  PCRE2_NO_UTF_CHECK, match.get(), context.get());
    if (found < 0) {
      throw std::runtime_error(fmt::format("PieceSplitter: pcre2 stopped at byte {} of {} of the text: {}",
                                           start, text.size(), message_of(found)));
    }
    const std::size_t end = pcre2_get_ovector_pointer(match.get())[1];
    take(text.substr(start, end - start));
    start = end;
  }
}

}  // namespace kvfuse
