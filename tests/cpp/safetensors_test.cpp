// The safetensors reader: what it reads, each rule by its message, and files that are no files.
#include "csrc/model/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "tests/cpp/safetensors_writer.h"
#include "tests/cpp/temporary_folder.h"

namespace kvfuse {
namespace {

using test::safetensors_bytes;
using test::TemporaryFolder;

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string refusal(std::string_view bytes) { return refusal_at(folder_.write("m.safetensors", bytes)); }

  static std::string refusal_at(const std::filesystem::path& path) {
    try {
      SafetensorsFile::open(path);
    } catch (const ModelFileError& error) {
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with(path.native() + ": ")) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      return message.substr(path.native().size() + 2);
    }
    return "accepted";
  }

  // A file of one tensor 'a' whose header entry is `entry`, with `data_bytes` of data.
  std::string entry_refusal(const std::string& entry, std::size_t data_bytes) {
    return refusal(safetensors_bytes(R"({"a":)" + entry + "}", std::string(data_bytes, 'x')));
  }

  TemporaryFolder folder_;
};

std::string read_all(const SafetensorsFile& file, const TensorEntry& entry) {
  std::string bytes(entry.bytes, '\0');
  file.read(entry, 0, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

TEST_F(SafetensorsTest, ReadsWhatWasWritten) {
  const auto path = folder_.write("m.safetensors", safetensors_bytes({{"b", "F32", {2, 1}, "12345678"},
                                                                      {"scalar", "F16", {}, "ab"},
                                                                      {"empty", "F64", {3, 0}, ""},
                                                                      {"a", "F4", {3, 2}, "xyz"}}));
  const SafetensorsFile file = SafetensorsFile::open(path);
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors().front().name, "a");
  EXPECT_EQ(file.find("c"), nullptr);
  const TensorEntry* b = file.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype.name, "F32");
  EXPECT_EQ(b->shape, (std::vector<std::int64_t>{2, 1}));
  EXPECT_EQ(read_all(file, *b), "12345678");
  EXPECT_EQ(read_all(file, *file.find("scalar")), "ab");
  EXPECT_EQ(read_all(file, *file.find("empty")), "");
  EXPECT_EQ(read_all(file, *file.find("a")), "xyz");

  std::string part(3, '\0');
  file.read(*b, 5, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(part, "678");
  EXPECT_THROW(file.read(*b, 6, std::as_writable_bytes(std::span(part))), std::out_of_range);
  EXPECT_THROW(file.read(*b, 9, {}), std::out_of_range);
}

TEST_F(SafetensorsTest, AcceptsNoTensorsAndPadding) {
  EXPECT_EQ(refusal(safetensors_bytes("{}", "")), "accepted");
  EXPECT_EQ(refusal(safetensors_bytes("{ \n}  \t  ", "")), "accepted");
}

TEST_F(SafetensorsTest, HeaderLengthIsChecked) {
  const auto with_length = [](std::uint64_t length, std::string_view rest) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return bytes.append(rest);
  };
  for (std::size_t size = 0; size < 8; ++size)
    EXPECT_EQ(refusal(std::string(size, '\0')),
              "header: expected 8 bytes that give its length, got a file of " + std::to_string(size));
  for (const std::uint64_t length : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{100'000'001},
                                     std::uint64_t{1} << 63, ~std::uint64_t{0}})
    EXPECT_EQ(refusal(with_length(length, "{}")), "header: expected a length of 2 to 100000000 bytes, got " +
                                                      std::to_string(length) +
                                                      " (is it a safetensors file?)");
  EXPECT_EQ(refusal(with_length(3, "{}")),
            "header: its length of 3 bytes runs past the end of the file of 10");
  EXPECT_EQ(refusal(with_length(2, "{}!")), "expected 0 bytes of tensor data after the header, got 1");
}

TEST_F(SafetensorsTest, HeaderTextIsChecked) {
  const std::string entry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  const std::pair<std::string, std::string> cases[] = {
      {" {}", "header: expected it to begin with '{'"},
      {"[]", "header: expected it to begin with '{'"},
      {"\xef\xbb\xbf{}", "header: expected it to begin with '{'"},
      {"{}}", "header: expected valid JSON in UTF-8, got an error at byte 3"},
      {"{\"a", "header: expected valid JSON in UTF-8, got an error at byte 4"},
      {"{\"\xff\":1}", "header: expected valid JSON in UTF-8, got an error at byte 3"},
      {R"({"\ud800":1})", "header: expected valid JSON in UTF-8, got an error at byte 9"},
      {std::string("{}\0{", 4), "header: NUL at byte 2"},
      {R"({"a":1})", "header: expected an object for 'a', got the number 1"},
      {R"({"a":-1})", "header: expected an object for 'a', got a negative number"},
      {R"({"a":null})", "header: expected an object for 'a', got null"},
      {R"({"a":true})", "header: expected an object for 'a', got a boolean"},
      {R"({"a":["U8",[1],[0,1]]})", "header: expected an object for 'a', got an array"},
      {R"({"a":)" + entry + R"(,"a":)" + entry + "}", "tensor 'a': is given twice"},
      {R"({"__metadata__":null})", "header: expected an object for '__metadata__', got null"},
      {R"({"__metadata__":{"k":1}})", "header: expected strings only in __metadata__, got the number 1"},
      {R"({"__metadata__":{"k":{}}})", "header: expected strings only in __metadata__, got an object"},
      {R"({"__metadata__":{"k":"","k":""}})", "header: metadata key 'k' is given twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", "header: '__metadata__' is given twice"},
  };
  for (const auto& [header, message] : cases) EXPECT_EQ(refusal(safetensors_bytes(header, "x")), message);
}

TEST_F(SafetensorsTest, EntryFieldsAreChecked) {
  const std::pair<std::string, std::string> cases[] = {
      {R"({"dtype":"F33"})", "unknown dtype 'F33'"},
      {R"({"dtype":{"F32":null}})", "expected a string as dtype, got an object"},
      {R"({"dtype":4})", "expected a string as dtype, got the number 4"},
      {R"({"shape":"1"})", "expected an array as shape and data_offsets, got the string '1'"},
      {R"({"shape":[-1]})", "expected a shape of unsigned integers below 2^63, got a negative number"},
      {R"({"shape":[-0]})", "expected a shape of unsigned integers below 2^63, got a negative number"},
      {R"({"shape":[1.5]})", "expected a shape of unsigned integers below 2^63, got the number '1.5'"},
      {R"({"shape":[1e30]})", "expected a shape of unsigned integers below 2^63, got the number '1e30'"},
      {R"({"shape":[18446744073709551616]})",
       "expected a shape of unsigned integers below 2^63, got the number '18446744073709551616'"},
      {R"({"shape":[9223372036854775808]})",
       "expected a shape of unsigned integers below 2^63, got 9223372036854775808"},
      {R"({"shape":[[1]]})", "expected a shape of unsigned integers below 2^63, got an array"},
      {R"({"shape":[1,1,1,1,1,1,1,1,1]})", "expected a shape of at most 8 dimensions, got more"},
      {R"({"data_offsets":[0]})", "expected data_offsets of two unsigned 64-bit integers, got 1"},
      {R"({"data_offsets":[0,1,2]})", "expected data_offsets of two unsigned 64-bit integers, got more"},
      {R"({"data_offsets":[0,"1"]})",
       "expected data_offsets of two unsigned 64-bit integers, got the string '1'"},
      {R"({"dtype":"U8","dtype":"U8"})", "field 'dtype' is given twice"},
      {R"({"shape":[],"shape":[]})", "field 'shape' is given twice"},
      {R"({"data_offsets":[0,0],"data_offsets":[0,0]})", "field 'data_offsets' is given twice"},
      {R"({"stride":[1]})", "unknown field 'stride' (known: dtype, shape, data_offsets)"},
      {R"({"shape":[1],"data_offsets":[0,1]})", "field 'dtype' is missing"},
      {R"({"dtype":"U8","data_offsets":[0,1]})", "field 'shape' is missing"},
      {R"({"dtype":"U8","shape":[1]})", "field 'data_offsets' is missing"},
      {R"({"dtype":"U8","shape":[1],"data_offsets":[1,0]})", "expected data_offsets in order, got [1, 0]"},
      {R"({"dtype":"F4","shape":[1],"data_offsets":[0,1]})",
       "shape [1] x F4 needs 4 bits, expected whole bytes"},
      {R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,1]})",
       "shape [4294967296, 4294967296] x U8 overflows 64 bits"},
      {R"({"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,1]})",
       "shape [1152921504606846976] x F32 overflows 64 bits"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,1]})",
       "shape [2] x F32 needs 8 bytes, header gives 1"},
      {R"({"dtype":"U8","shape":[1],"data_offsets":[1,2]})", "begins at 1 and leaves a hole from 0"},
  };
  for (const auto& [entry, message] : cases) EXPECT_EQ(entry_refusal(entry, 1), "tensor 'a': " + message);
}

TEST_F(SafetensorsTest, LayoutIsChecked) {
  const auto two = [&](const std::string& first, const std::string& second, std::size_t data_bytes) {
    const std::string begin = R"({"dtype":"U8","shape":[4],"data_offsets":)";
    const std::string header = R"({"a":)" + begin + first + R"(},"b":)" + begin + second + "}}";
    return refusal(safetensors_bytes(header, std::string(data_bytes, 'x')));
  };
  EXPECT_EQ(two("[0,4]", "[4,8]", 8), "accepted");
  EXPECT_EQ(two("[4,8]", "[0,4]", 8), "accepted");
  EXPECT_EQ(two("[0,4]", "[2,6]", 6),
            "tensor 'b': begins at 2 and overlaps the tensor before it, which ends at 4");
  EXPECT_EQ(two("[0,4]", "[6,10]", 10), "tensor 'b': begins at 6 and leaves a hole from 4");
  EXPECT_EQ(two("[0,4]", "[4,8]", 7),
            "expected 8 bytes of tensor data after the header, got 7 (the file is cut off)");
  EXPECT_EQ(two("[0,4]", "[18446744073709551611,18446744073709551615]", 8),
            "tensor 'b': begins at 18446744073709551611 and leaves a hole from 4");
}

TEST_F(SafetensorsTest, SizesAreLimited) {
  const std::string entry = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  const std::string at_limit(kMaxNameBytes, 'n');
  EXPECT_EQ(refusal(safetensors_bytes("{\"" + at_limit + "\":" + entry + "}", "")), "accepted");
  EXPECT_EQ(
      refusal(safetensors_bytes("{\"" + at_limit + "n\":" + entry + "}", "")),
      "header: expected names of at most 512 bytes, got one of 513: '" + std::string(160, 'n') + "...'");

  std::string many = "{";
  for (std::size_t i = 0; i < kMaxEntries; ++i) many += "\"" + std::to_string(i) + "\":" + entry + ",";
  many.back() = '}';
  EXPECT_EQ(refusal(safetensors_bytes(many, "")), "accepted");
  many.back() = ',';
  EXPECT_EQ(refusal(safetensors_bytes(many + R"("__metadata__":{}})", "")),
            "header: expected at most 65536 tensors and metadata keys, got more");

  const std::string too_long =
      "header: expected strings, numbers and white space of at most 1048576 bytes, "
      "got more from byte 1 on";
  EXPECT_EQ(refusal(safetensors_bytes("{" + std::string(2 << 20, ' ') + "}", "")), too_long);
  EXPECT_EQ(refusal(safetensors_bytes("{\"" + std::string(2 << 20, 'x') + "\"}", "")), too_long);
}

TEST_F(SafetensorsTest, MillionBracketsAreRefused) {
  EXPECT_EQ(entry_refusal(R"({"shape":)" + std::string(1'000'000, '['), 0),
            "tensor 'a': expected a shape of unsigned integers below 2^63, got an array");
  EXPECT_EQ(refusal(safetensors_bytes(R"({"__metadata__":{"k":)" + std::string(1'000'000, '['), "")),
            "header: expected strings only in __metadata__, got an array");
}

TEST_F(SafetensorsTest, HugeHeaderIsRefusedAtOnce) {
  const auto path = folder_.write("m.safetensors", safetensors_bytes("{", ""));
  const std::uint64_t length = kMaxHeaderBytes;
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
      .write(reinterpret_cast<const char*>(&length), sizeof length);
  std::filesystem::resize_file(path, 8 + length);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(refusal_at(path), "header: NUL at byte 1");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(100));
}

TEST_F(SafetensorsTest, MessagesStayOnOneLine) {
  EXPECT_EQ(entry_refusal(R"({"x\ny\u001b[31m\u007f":1})", 0),
            R"(tensor 'a': unknown field 'x\x0ay\x1b[31m\x7f' (known: dtype, shape, data_offsets))");
  std::string long_name = "x";
  for (int i = 0; i < 100; ++i) long_name += "é";  // two bytes each: byte 160 is the second of one
  EXPECT_EQ(in_quotes(long_name), "'" + long_name.substr(0, 159) + "...'");
  EXPECT_STREQ(ModelFileError("a\nb", "is odd").what(), "a\\x0ab: is odd");
}

TEST_F(SafetensorsTest, OnlyRegularFilesAreRead) {
  const std::string not_a_file = "expected a regular file, got a pipe, socket or device";
  EXPECT_EQ(refusal_at(folder_.path()), "expected a regular file, got a directory");
  EXPECT_EQ(refusal_at("/dev/zero"), not_a_file);
  EXPECT_EQ(refusal_at(folder_.path() / "none"), "cannot be opened: No such file or directory");
  const auto pipe = folder_.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(refusal_at(pipe), not_a_file);
  const auto link = folder_.path() / "link";
  std::filesystem::create_symlink(folder_.path() / "none", link);
  EXPECT_EQ(refusal_at(link), "cannot be opened: No such file or directory");
  std::filesystem::remove(link);
  std::filesystem::create_symlink(folder_.write("real", safetensors_bytes("{}", "")), link);
  EXPECT_EQ(refusal_at(link), "accepted");
}

TEST_F(SafetensorsTest, UnreadableFileIsRefused) {
  if (::geteuid() == 0) GTEST_SKIP() << "root reads every file";
  const auto path = folder_.write("m.safetensors", safetensors_bytes("{}", ""));
  ASSERT_EQ(::chmod(path.c_str(), 0), 0);
  EXPECT_EQ(refusal_at(path), "cannot be opened: Permission denied");
}

TEST_F(SafetensorsTest, FileThatShrinksIsAnError) {
  const auto path = folder_.write("m.safetensors", safetensors_bytes({{"a", "U8", {4}, "1234"}}));
  const SafetensorsFile file = SafetensorsFile::open(path);
  const std::uint64_t size = std::filesystem::file_size(path);
  std::filesystem::resize_file(path, size - 1);
  try {
    read_all(file, *file.find("a"));
    FAIL() << "expected ModelFileError";
  } catch (const ModelFileError& error) {
    EXPECT_EQ(error.what(), path.native() + ": shrank while it was read: had " + std::to_string(size) +
                                " bytes, now ends at or before byte " + std::to_string(size - 1));
  }
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string bytes = safetensors_bytes({{"a", "F32", {2}, "12345678"}, {"b", "I8", {3}, "abc"}});
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_NE(refusal(std::string_view(bytes).substr(0, size)), "accepted") << size;
  EXPECT_EQ(refusal(bytes), "accepted");
  EXPECT_EQ(refusal(bytes + "x"), "expected 11 bytes of tensor data after the header, got 12");
}

// A flip may leave a right file (another letter in a name); it must never leave one whose tensors lie
// outside.
TEST_F(SafetensorsTest, EveryHeaderBitFlipIsRefusedOrStaysInside) {
  std::string bytes = safetensors_bytes({{"a", "F32", {2}, "12345678"}, {"b", "I8", {3}, "abc"}});
  const std::size_t header_end = bytes.size() - 11;
  for (std::size_t bit = 0; bit < header_end * 8; ++bit) {
    bytes[bit / 8] ^= static_cast<char>(1 << (bit % 8));
    const auto path = folder_.write("m.safetensors", bytes);
    if (refusal_at(path) == "accepted") {
      const SafetensorsFile file = SafetensorsFile::open(path);
      std::size_t data_bytes = 0;
      for (const TensorEntry& entry : file.tensors()) data_bytes += read_all(file, entry).size();
      EXPECT_EQ(data_bytes, 11u) << "bit " << bit;
    }
    bytes[bit / 8] ^= static_cast<char>(1 << (bit % 8));
  }
}

}  // namespace
}  // namespace kvfuse
