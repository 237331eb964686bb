// What the record of a perplexity says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "csrc/model/perplexity.h"
#include "csrc/records/run_facts.h"

namespace kvfuse {

inline constexpr const char* kPerplexityName = "perplexity";

// What was scored, and how.
struct PerplexityFacts {
  std::string dataset;  // the file's path
  std::string dataset_sha256;
  bool autoregressive = false;
  std::optional<std::int64_t> max_tokens;
  std::optional<std::int64_t> document_separator;
  OverflowPolicy overflow = {};
};

json perplexity_case(const RunFacts& run, const PerplexityFacts& facts, const Strategy& strategy);

// What is known before the score.
json perplexity_fields(const PerplexityFacts& facts, const Windows& windows, double elapsed_s);

// The score, and what its text alone tells: perplexity by word and by byte of `text`, null without it.
// `baseline`: the perplexity that the degradation in percent is counted from; absent: null.
json score_fields(const Score& score, const Windows& windows, const std::optional<TextSize>& text,
                  std::optional<double> baseline);

// The perplexity of a finished record with that case, from a later one rather than an earlier.
std::optional<double> recorded_perplexity(const RecordLog& log, const json& case_key);

// Empty, or why a finished score is none.
std::string score_problem(const Score& score);

}  // namespace kvfuse
