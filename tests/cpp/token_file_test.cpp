// Token files: what is read, and the message for each kind of bad file.
#include "csrc/text/token_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace kvfuse {
namespace {

using namespace std::string_literals;

class TokenFileTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(std::string_view bytes) const {
    std::ofstream(folder_ / "tokens.bin", std::ios::binary) << bytes;
    return folder_ / "tokens.bin";
  }

  // The message that reading `path` fails with; it always opens with the path.
  static std::string error_of(const std::filesystem::path& path, std::int64_t vocab_size = 50257) {
    try {
      read_token_file(path, vocab_size);
    } catch (const DataFileError& error) {
      EXPECT_EQ(std::string(error.what()).find(path.string() + ": "), 0U) << error.what();
      return error.what();
    }
    return "nothing was thrown";
  }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("kvfuse_token_file_test_" + std::to_string(getpid()));
};

#define EXPECT_HAS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << "in: " << (text) << "\nmissing: " << (part)

TEST_F(TokenFileTest, ReadsLittleEndianTokensAndHashesTheBytes) {
  const TokenFile file = read_token_file(write("\x61\x62\x63\x00\x50\xc4"s), 50257);
  EXPECT_EQ(file.tokens, (std::vector<std::uint16_t>{0x6261, 0x0063, 50256}));
  EXPECT_EQ(read_token_file(write("abcd"), 50257).sha256,  // as sha256sum prints it
            "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589");
}

TEST_F(TokenFileTest, AcceptsTheWholeRangeOfItsVocabularyOnly) {
  const auto path = write("\x00\x00\xff\xff"s);
  EXPECT_EQ(read_token_file(path, 65536).tokens.back(), 65535);
  const std::string error = error_of(path, 65535);
  EXPECT_HAS(error, "token 1 of 2: expected an id below 65535");
  EXPECT_HAS(error, "got 65535");
}

TEST_F(TokenFileTest, RefusesWhatIsNoTokenFile) {
  EXPECT_HAS(error_of(write("")), "expected a token file of 1 to 4294967296 bytes, got 0");
  EXPECT_HAS(error_of(write("abc")), "an even number of bytes, got 3 bytes");
  EXPECT_HAS(error_of(folder_ / "missing.bin"), "No such file or directory");
  EXPECT_HAS(error_of(folder_), "no regular file");
  EXPECT_HAS(error_of("/dev/zero"), "no regular file");
}

TEST_F(TokenFileTest, DoesNotWaitForAPipe) {
  ASSERT_EQ(mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_HAS(error_of(folder_ / "pipe"), "no regular file");
}

TEST_F(TokenFileTest, SaysWhyAFileCannotBeOpened) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read every file";
  const auto path = write("abcd");
  std::filesystem::permissions(path, std::filesystem::perms::none);
  EXPECT_HAS(error_of(path), "Permission denied");
}

}  // namespace
}  // namespace kvfuse
