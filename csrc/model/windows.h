// How a text is cut for scoring.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csrc/model/overflow_policy.h"
#include "csrc/model/token_batch.h"

namespace kvfuse {

struct CutOptions {
  std::int64_t block_size = 0;
  std::int64_t batch_size = 1;
  std::optional<std::int64_t> max_tokens;          // of the text; absent: all
  std::optional<std::int64_t> document_separator;  // a token; absent: the tokens are one document
  OverflowPolicy overflow = {};
};

struct Windows {
  std::vector<TokenBatch> batches;  // the longest window of a batch first
  std::int64_t window = 0;          // tokens seen at once at most
  std::int64_t stride = 0;          // from where one begins to where the next does
  std::int64_t count = 0;
  std::int64_t predicted = 0;  // tokens that are scored
};

// Each document in windows of at most block_size; what is left with a single token is not scored. With
// overflow slide or sink a document is a window of its own, and a lone one is cut into as many as run side by
// side. Throws std::invalid_argument that names the option, the rule and the value.
Windows cut(std::span<const std::uint16_t> tokens, const CutOptions& options);

struct TextSize {
  std::int64_t words = 0;  // runs of anything but white space
  std::int64_t bytes = 0;
};

// The text behind token ids.
using Decode = std::function<std::string(std::span<const std::uint16_t>)>;

// Of the scored tokens: every one of a window but its first.
TextSize scored_text(const Windows& windows, const Decode& decode);

}  // namespace kvfuse
