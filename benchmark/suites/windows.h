// How a text is cut for scoring.
#pragma once

#include <cstdint>
#include <vector>

#include "benchmark/config.h"
#include "csrc/model/token_batch.h"

namespace kvfuse::bench {

struct Windows {
  std::vector<TokenBatch> batches;  // the longest window of a batch first
  std::int64_t window = 0;          // tokens seen at once at most
  std::int64_t stride = 0;          // from where one begins to where the next does
  std::int64_t count = 0;
  std::int64_t predicted = 0;  // tokens that are scored
};

// Each document, or the text if `config` names no separator, in windows of at most block_size; what is left
// with a single token is not scored. With overflow slide or sink a document is a window of its own, and a
// lone one is cut into as many as run side by side.
Windows cut(const std::vector<std::uint16_t>& tokens, const BenchConfig& config);

}  // namespace kvfuse::bench
