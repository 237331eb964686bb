// The published expected results, as published, beside what full accounting gives. Where the published
// figures leave bytes out or count them more than once, the two differ, and each row says how.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/roofline/model_shape.h"

namespace kvfuse::roofline {

// Llama-3 8B without embedding and head, the published example.
ModelShape published_model();

// What the published pair of FP16 decode times follows: weights of the FFN only, and K and V 3.5 times.
double published_compat_ms(double context);

struct PublishedRow {
  std::string table;  // "decode", "kv_cache", "attention", "insight", "critical_ai"
  std::string name;   // "nvfp4_blackwell at 4096"
  std::string unit;
  double as_published = 0;
  std::optional<double> complete;  // by this library, weights, scales, K and V counted once each
  std::optional<double> compat;    // by published_compat_ms
  std::string note;                // why they differ, if they do
};

// All rows, on the published figures of GB10.
std::vector<PublishedRow> published_results();

// The published recommendation for published_model, decode, 4096 tokens.
struct PublishedRecommendation {
  std::string_view strategy_name = "nvfp4_blackwell";
  std::string_view attention = "FA3";
  double speedup = 2.59;
};

}  // namespace kvfuse::roofline
