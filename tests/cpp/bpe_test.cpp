// The byte-level BPE by itself: pieces, merges, replaced bytes, long inputs, and a sentence for each kind of
// damaged vocabulary. tests/python/test_bpe.py compares it with tiktoken.
#include "csrc/text/bpe.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "csrc/text/token_file.h"
#include "csrc/text/utf8.h"
#include "tests/cpp/bpe_files.h"
#include "tests/cpp/temporary_folder.h"

namespace kvfuse {
namespace {

using namespace std::string_literals;
using Ids = std::vector<std::uint16_t>;
using Seconds = std::chrono::duration<double>;

// \u0120 spells a space: "he" is 256, "the" 257, " the" 258, "aa" 259.
constexpr const char* kMerges = "#version: 0.2\nh e\nt he\n\u0120 the\na a\n";
constexpr int kSpace = 188 + 32;  // the bytes that don't print follow the 188 that do

int id_of(char printable) { return printable - '!'; }

class BpeTest : public ::testing::Test {
 protected:
  void write(const char* name, std::string_view bytes) const { place_.write(name, bytes); }

  Gpt2Tokenizer tokenizer(const std::string& merges = kMerges) const {
    write("vocab.bpe", merges);
    write("encoder.json", encoder_for(merges).dump());
    return Gpt2Tokenizer::from_folder(folder_);
  }

  // The message that loading fails with, less the path of `file`, which it opens with. One line only.
  std::string error_of(const char* file, const std::string& vocab_bpe,
                       const std::string& encoder_json) const {
    write("vocab.bpe", vocab_bpe);
    write("encoder.json", encoder_json);
    return load_error(file);
  }
  std::string load_error(const char* file) const {
    try {
      Gpt2Tokenizer::from_folder(folder_);
    } catch (const DataFileError& error) {
      const std::string message = error.what();
      const std::string start = (folder_ / file).string() + ": ";
      EXPECT_EQ(message.find(start), 0U) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      EXPECT_LT(message.size(), start.size() + 400) << message;
      return message.substr(start.size());
    }
    return "nothing was thrown";
  }
  std::string merges_error(const std::string& lines) const {
    const std::string merges = "#version: 0.2\n" + lines;
    return error_of("vocab.bpe", merges, encoder_for(merges).dump());
  }
  template <typename Change>
  std::string encoder_error(const Change& change) const {
    nlohmann::ordered_json ids = encoder_for(kMerges);
    change(ids);
    return error_of("encoder.json", kMerges, ids.dump());
  }

  const test::TemporaryFolder place_;
  const std::filesystem::path folder_ = place_.path();
};

#define EXPECT_HAS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << "in: " << (text) << "\nmissing: " << (part)

std::vector<std::string> pieces_of(std::string_view text) {
  std::vector<std::string> pieces;
  PieceSplitter().split(text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

using Pieces = std::vector<std::string>;

TEST(Pieces, FollowGpt2) {
  EXPECT_EQ(pieces_of(""), Pieces{});
  EXPECT_EQ(pieces_of("It's 12 o'clock!?"), (Pieces{"It", "'s", " 12", " o", "'", "clock", "!?"}));
  EXPECT_EQ(
      pieces_of("we'll they've I'm you're he'd can't 'S"),
      (Pieces{"we", "'ll", " they", "'ve", " I", "'m", " you", "'re", " he", "'d", " can", "'t", " '", "S"}));
  EXPECT_EQ(pieces_of("a   b\n\n c  "), (Pieces{"a", "  ", " b", "\n\n", " c", "  "}));
  EXPECT_EQ(
      pieces_of("\xc3\xa9t\xc3\xa9\xc2\xbd\xe2\x85\xa7\xcc\x81"),  // letters, numbers, a combining accent
      (Pieces{"\xc3\xa9t\xc3\xa9", "\xc2\xbd\xe2\x85\xa7", "\xcc\x81"}));
}

// Where pcre2's own classes differ from tiktoken's.
TEST(Pieces, ClassesAreThoseOfTiktoken) {
  EXPECT_EQ(pieces_of("!\u0085\u00a0!"), (Pieces{"!", "\u0085", "\u00a0", "!"}));  // white space
  EXPECT_EQ(pieces_of("!\u180e!"), (Pieces{"!\u180e!"}));                          // none since Unicode 6.3
  EXPECT_EQ(pieces_of("!\u200b!"), (Pieces{"!\u200b!"}));                          // never
  EXPECT_EQ(pieces_of("a\U00031350\U000105c0a"),
            (Pieces{"a\U00031350\U000105c0a"}));  // letters, Unicode 15, 16
  EXPECT_EQ(pieces_of("1\U0001e4f0\U0001ccf91"), (Pieces{"1\U0001e4f0\U0001ccf91"}));  // numbers, 15, 16
  EXPECT_EQ(pieces_of("a\U000323b0a"), (Pieces{"a", "\U000323b0", "a"}));              // not assigned
}

TEST(Pieces, AreTheWholeText) {
  std::string text;
  for (int i = 0; i < 20000; ++i) text += std::string(i % 7, ' ') + (i % 3 ? "word's" : "12\u00e9\t--");
  std::string joined;
  PieceSplitter().split(text, [&](std::string_view piece) { joined += piece; });
  EXPECT_EQ(joined, text);
}

TEST(Pieces, GivingUpIsASentence) {
  try {
    PieceSplitter(/*match_limit=*/0).split("word", [](std::string_view) {});
    FAIL() << "pcre2 did not stop at its limit";
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(error.what(), "PieceSplitter: pcre2 stopped at byte 0 of 4 of the text: match limit exceeded"s);
  }
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  EXPECT_EQ(valid_utf8_bytes(""), 0U);
  EXPECT_EQ(valid_utf8_bytes("0123456789\xc3\xa9 \xf4\x8f\xbf\xbf"), 17U);
  EXPECT_EQ(valid_utf8_bytes("0123456789abcdef\xff"), 16U);
  for (const std::string bad : {"\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                                "\xf4\x90\x80\x80", "\xf5", "\xc3", "\xe2\x82", "\xf0\x9f\x98"})
    EXPECT_EQ(valid_utf8_bytes("ab" + bad), 2U) << testing::PrintToString(bad);
}

TEST(Utf8, ReplacesMaximalParts) {
  const std::string r = "\xef\xbf\xbd";
  EXPECT_EQ(replace_invalid_utf8(""), "");
  EXPECT_EQ(replace_invalid_utf8("a\xff\xfe"
                                 "b"),
            "a" + r + r + "b");
  EXPECT_EQ(replace_invalid_utf8("\xf0\x9f\x98x\xe2\x82"), r + "x" + r);
  EXPECT_EQ(replace_invalid_utf8("\xed\xa0\x80"), r + r + r);  // a surrogate: no byte can follow its first
  EXPECT_EQ(replace_invalid_utf8("\xc3\xc3\xa9"), r + "\xc3\xa9");
  EXPECT_EQ(replace_invalid_utf8("a\0b"s), "a\0b"s);
}

TEST_F(BpeTest, MergesTheSmallestIdFirstAndTheLeftmost) {
  const Gpt2Tokenizer bpe = tokenizer();
  EXPECT_EQ(bpe.vocab_size(), 261);
  EXPECT_EQ(bpe.encode(""), Ids{});
  EXPECT_EQ(bpe.encode("the the"), (Ids{257, 258}));
  EXPECT_EQ(bpe.encode("he  he"), (Ids{256, kSpace, kSpace, 256}));
  EXPECT_EQ(bpe.encode("aaaaa"), (Ids{259, 259, static_cast<std::uint16_t>(id_of('a'))}));
  EXPECT_EQ(bpe.encode("\0\xc2\xad"s), (Ids{188, 126, 255}));  // the soft hyphen's second byte comes last
}

TEST_F(BpeTest, InvalidBytesAreReplacementCharacters) {
  const Gpt2Tokenizer bpe = tokenizer();
  EXPECT_EQ(bpe.encode("the\xff the"), bpe.encode("the\xef\xbf\xbd the"));
  EXPECT_EQ(bpe.decode(bpe.encode("\xe2\x82")), "\xef\xbf\xbd");
}

TEST_F(BpeTest, SpecialTokensAreOrdinaryText) {
  const Gpt2Tokenizer bpe = tokenizer();
  EXPECT_EQ(bpe.end_of_text(), 260);
  EXPECT_EQ(bpe.encode("<|endoftext|>").size(), 13U);
  EXPECT_EQ(bpe.decode(Ids{257, bpe.end_of_text()}), "the<|endoftext|>");
}

TEST_F(BpeTest, DecodesEveryByteAndNoUnknownId) {
  const Gpt2Tokenizer bpe = tokenizer();
  std::string bytes;
  for (std::uint16_t id = 0; id < 256; ++id) bytes += bpe.decode({&id, 1});
  std::sort(bytes.begin(), bytes.end(),
            [](char a, char b) { return static_cast<unsigned char>(a) < static_cast<unsigned char>(b); });
  for (int b = 0; b < 256; ++b) EXPECT_EQ(static_cast<unsigned char>(bytes[b]), b);
  try {
    bpe.decode(Ids{1, 261});
    FAIL() << "261 was decoded";
  } catch (const std::out_of_range& error) {
    EXPECT_EQ(error.what(), "decode: token 1 of 2: expected an id below 261, got 261"s);
  }
}

TEST_F(BpeTest, ThreadsShareATokenizer) {
  const Gpt2Tokenizer bpe = tokenizer();
  std::string text;
  for (int i = 0; i < 20000; ++i) text += i % 5 == 0 ? " the" : "he aaa";
  const Ids want = bpe.encode(text);
  std::vector<Ids> got(4);
  std::vector<std::thread> threads;
  for (Ids& ids : got) threads.emplace_back([&] { ids = bpe.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& ids : got) EXPECT_EQ(ids, want);
}

TEST_F(BpeTest, SurvivesItsMove) {
  Gpt2Tokenizer bpe = tokenizer();
  const Gpt2Tokenizer moved = std::move(bpe);
  EXPECT_EQ(moved.decode(moved.encode("the aaa\xc3\xa9")), "the aaa\xc3\xa9");
}

// Quadratic merging of a piece of a megabyte takes minutes, and so does scanning the rest for every piece.
TEST_F(BpeTest, LongInputsTakeNoQuadraticTime) {
  std::string merges = "#version: 0.2\n";
  for (std::string token = "a"; token.size() < 64; token += token) merges += token + " " + token + "\n";
  const Gpt2Tokenizer bpe = tokenizer(merges);
  const auto seconds_for = [&](const std::string& text) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(bpe.decode(bpe.encode(text)), text);
    return Seconds(std::chrono::steady_clock::now() - start).count();
  };
  constexpr std::size_t kMegabyte = 1 << 20;
  EXPECT_LT(seconds_for(std::string(kMegabyte, 'a')), 10);
  EXPECT_LT(seconds_for(std::string(8 * kMegabyte, ' ') + "a"), 10);
  std::string words;
  while (words.size() < 8 * kMegabyte) words += "a'b ";
  EXPECT_LT(seconds_for(words), 20);
  EXPECT_EQ(bpe.encode(std::string(kMegabyte, 'a')), Ids(kMegabyte / 64, 256 + 5));
}

TEST_F(BpeTest, RefusesDamagedMerges) {
  EXPECT_HAS(merges_error("h e"), "expected a line end as the last byte: the file is cut off");
  EXPECT_HAS(merges_error("h e\nt he\nh e\n"),
             "line 4: expected a new token, got \"he\", which line 2 makes");
  EXPECT_HAS(merges_error("a a\na aa\naa a\n"),
             "line 4: expected a new token, got \"aaa\", which line 3 makes");
  EXPECT_HAS(merges_error("h e\nt xe\n"),
             "line 3: expected a byte or a token that a line above makes, got \"xe\"");
  EXPECT_HAS(merges_error("t he\nh e\n"),
             "line 2: expected a byte or a token that a line above makes, got \"he\"");
  EXPECT_HAS(merges_error("h e\r\n"), R"(a line above makes, got "e\r")");
  EXPECT_HAS(merges_error("h\0 e\n"s), R"(a line above makes, got "h\u0000")");
  EXPECT_HAS(merges_error("he\n"), "line 2: expected two tokens with one space between them, got \"he\"");
  EXPECT_HAS(merges_error("h  e\n"), "expected two tokens with one space between them");
  EXPECT_HAS(merges_error("h e \n"), "expected two tokens with one space between them");
  EXPECT_HAS(merges_error("\n"), "line 2: expected two tokens with one space between them, got \"\"");
  EXPECT_HAS(error_of("vocab.bpe", "h e\n", "{}"),
             R"(line 1: expected it to begin with "#version:", got "h e")");
  EXPECT_HAS(error_of("vocab.bpe", "", "{}"), "expected a vocabulary file of 1 to 16777216 bytes, got 0");
  EXPECT_HAS(error_of("vocab.bpe", "#version: 0.2\nh e\nx\xff y\n", "{}"),
             "line 3: expected UTF-8, got byte 0xff at byte 1 of the line");
}

TEST_F(BpeTest, RefusesMergesThatNothingLeadsTo) {
  // "abc" merges "bc" before "ab", so nothing ever meets "ab" beside "c".
  EXPECT_HAS(merges_error("b c\na b\nab c\n"),
             "line 4: expected a merge that its token's bytes lead to, got \"abc\", whose bytes merge into 2 "
             "tokens");
  EXPECT_HAS(merges_error("< |\n<| e\n<|e n\n<|en d\n<|end o\n<|endo f\n<|endof t\n<|endoft e\n<|endofte x\n"
                          "<|endoftex t\n<|endoftext |\n<|endoftext| >\n"),
             "line 13: expected no merge that makes <|endoftext|>, the name of a special token");
}

TEST_F(BpeTest, RefusesMoreTokensThanIdsFit) {
  std::string lines;
  for (int i = 0; i < 255; ++i)
    for (int j = 0; j < 256; ++j) lines += spelled_byte(i) + " " + spelled_byte(j) + "\n";
  EXPECT_HAS(error_of("vocab.bpe", "#version: 0.2\n" + lines, "{}"),
             "line 65281: expected at most 65279 merges, got more");
}

TEST_F(BpeTest, RefusesDamagedIds) {
  const auto set = [this](const char* token, const nlohmann::json& id) {
    return encoder_error([&](auto& ids) { ids[token] = id; });
  };
  const std::string rule = "entry 257: expected id 256 for token \"he\" (its place in vocab.bpe), got ";
  EXPECT_HAS(set("he", 257), rule + "257");
  EXPECT_HAS(set("he", 50257), rule + "50257");
  EXPECT_HAS(set("he", -1), rule + "-1");
  EXPECT_HAS(set("he", 256.0), rule + "\"256.0\"");
  EXPECT_HAS(set("he", 256 + (1LL << 32)), rule + "4294967552");
  EXPECT_HAS(set("he", "256"), rule + "the string \"256\"");
  EXPECT_HAS(set("he", nullptr), rule + "null");
  EXPECT_HAS(set("he", true), rule + "a boolean");
  EXPECT_HAS(set("he", {256}), rule + "an array");
  EXPECT_HAS(set("he", {{"id", 256}}), rule + "an object");
  EXPECT_HAS(set("<|endoftext|>", 261), "entry 261: expected id 260 for token \"<|endoftext|>\"");
  EXPECT_HAS(set("ha", 261),
             "entry 262: expected a byte, a token that vocab.bpe makes or <|endoftext|>, got \"ha\"");
  EXPECT_HAS(encoder_error([](auto& ids) { ids.erase("the"); }),
             "expected 261 entries, got 260: token \"the\" with id 257 is missing");
  EXPECT_HAS(encoder_error([](auto& ids) { ids.erase("<|endoftext|>"); }), "is missing");
  EXPECT_HAS(encoder_error([](auto& ids) { ids = nlohmann::json::array(); }),
             "expected a JSON object of ids by token, got an array");
  EXPECT_HAS(encoder_error([](auto& ids) { ids = 5; }), "expected a JSON object of ids by token, got 5");
}

TEST_F(BpeTest, RefusesWhatIsNoJson) {
  const std::string sound = encoder_for(kMerges).dump();
  const auto error = [&](const std::string& text) { return error_of("encoder.json", kMerges, text); };
  EXPECT_EQ(error(sound), "nothing was thrown");
  EXPECT_HAS(error(sound.substr(0, sound.size() / 2)), "expected valid JSON in UTF-8, got an error at byte ");
  EXPECT_HAS(error(sound.substr(0, sound.size() - 1)), "after 261 entries");
  EXPECT_HAS(error(sound + "{}"), "expected valid JSON");
  EXPECT_HAS(error("{\"\xff\": 1}"), "expected valid JSON in UTF-8, got an error at byte 3");
  EXPECT_HAS(error(sound + "\0{"s), "expected JSON, got a NUL at byte " + std::to_string(sound.size()));
  EXPECT_HAS(error(sound.substr(0, sound.size() - 1) + ",\"he\":256}"),
             "entry 262: token \"he\" is given twice");
  EXPECT_HAS(error(std::string(1 << 20, '[')), "expected a JSON object of ids by token, got an array");
  EXPECT_HAS(error(""), "expected a vocabulary file of 1 to 16777216 bytes, got 0");
}

TEST_F(BpeTest, RefusesWhatIsNoVocabularyFile) {
  EXPECT_HAS(load_error("vocab.bpe"), "expected a vocabulary file, got \"No such file or directory\"");
  write("vocab.bpe", kMerges);
  EXPECT_HAS(load_error("encoder.json"), "No such file or directory");
  std::filesystem::create_directory(folder_ / "encoder.json");
  EXPECT_HAS(load_error("encoder.json"), "no regular file");
  std::filesystem::remove(folder_ / "vocab.bpe");
  ASSERT_EQ(mkfifo((folder_ / "vocab.bpe").c_str(), 0600), 0);
  EXPECT_HAS(load_error("vocab.bpe"), "no regular file");
}

TEST_F(BpeTest, RefusesHugeFilesAndLinesCheaply) {
  write("vocab.bpe", "#version: 0.2\n");
  std::filesystem::resize_file(folder_ / "vocab.bpe", 100'000'000);  // a line of 100 MB
  EXPECT_HAS(load_error("vocab.bpe"), "expected a vocabulary file of 1 to 16777216 bytes, got 100000000");
  const std::string long_token(8'000'000, 'h');
  const std::string error = merges_error(long_token + " e\n");
  EXPECT_HAS(error, "line 2: expected a byte or a token that a line above makes, got \"hhhh");
  EXPECT_HAS(error, "hhh\"...");
}

TEST_F(BpeTest, SaysWhyAFileCannotBeOpened) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read every file";
  write("vocab.bpe", kMerges);
  std::filesystem::permissions(folder_ / "vocab.bpe", std::filesystem::perms::none);
  EXPECT_HAS(load_error("vocab.bpe"), "Permission denied");
}

}  // namespace
}  // namespace kvfuse
