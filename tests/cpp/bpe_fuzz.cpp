// libFuzzer entry: no bytes make the byte-level BPE do anything but load and encode, or throw DataFileError;
// what it encodes decodes to the same text.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "csrc/text/bpe.h"
#include "csrc/text/token_file.h"
#include "csrc/text/utf8.h"
#include "tests/cpp/bpe_files.h"
#include "tests/cpp/memory_file.h"

namespace {

constexpr const char* kSoundMerges = "#version: 0.2\nh e\nt he\na a\naa a\n\u0120 the\n";

std::string before(std::string_view& rest, char end) {
  const std::string part(rest.substr(0, rest.find(end)));
  rest.remove_prefix(std::min(part.size() + 1, rest.size()));
  return part;
}

void check_round_trip(const kvfuse::Gpt2Tokenizer& bpe, std::string_view text) {
  if (bpe.decode(bpe.encode(text)) != kvfuse::replace_invalid_utf8(text)) std::abort();
}

}  // namespace

// The first byte chooses what is random beside the text: 0 both files, 1 the ids, 2 the merges, with the ids
// that belong to them, 3 nothing. Parts end with a 0x01.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  static const kvfuse::MemoryFile merges_file("merges");
  static const kvfuse::MemoryFile ids_file("ids");
  static const kvfuse::Gpt2Tokenizer sound(merges_file.holding(kSoundMerges),
                                           ids_file.holding(kvfuse::encoder_for(kSoundMerges).dump()));
  const int kind = data[0] % 4;
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (kind == 3) {
    check_round_trip(sound, rest);
    return 0;
  }
  const std::string merges = kind == 1 ? kSoundMerges : before(rest, '\x01');
  const std::string ids =
      kind == 2 ? kvfuse::encoder_for(merges).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                : before(rest, '\x01');
  try {
    check_round_trip(kvfuse::Gpt2Tokenizer(merges_file.holding(merges), ids_file.holding(ids)), rest);
  } catch (const kvfuse::DataFileError&) {
  }
  return 0;
}
