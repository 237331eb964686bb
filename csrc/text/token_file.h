// Token ids to score: from nanoGPT's token files, which are GPT-2 ids as little-endian uint16 and nothing
// else, or from text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "csrc/text/bpe.h"
#include "csrc/text/data_file.h"

namespace kvfuse {

struct TokenFile {
  std::vector<std::uint16_t> tokens;  // never empty, every one < vocab_size
  std::string sha256;                 // of the file's bytes, lower-case hexadecimal
};

// Throws DataFileError if the file can't be read, is empty, has half a token, or a token outside the
// vocabulary.
TokenFile read_token_file(const std::filesystem::path& path, std::int64_t vocab_size);

// The ids of a whole text; sha256 is that of the text. Throws DataFileError likewise.
TokenFile read_text_file(const std::filesystem::path& path, const Gpt2Tokenizer& tokenizer,
                         std::int64_t vocab_size);

}  // namespace kvfuse
