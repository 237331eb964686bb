// The forward passes that the benchmark roofline measures, by name: v1_prefill, v1_decode, and so on for
// every version.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/model/config.h"

namespace kvfuse::bench {

struct Stage {
  const Strategy* strategy = nullptr;
  bool decode = false;

  std::string name() const;
  // A decode stage without a cache: nothing is kept, so the next token costs the whole sequence again.
  bool recomputes() const { return decode && !strategy->use_cache; }
  // Tokens that the cache holds before the pass, and tokens that run through it, with a prompt of P.
  std::int64_t past(std::int64_t P) const { return decode && !recomputes() ? P : 0; }
  std::int64_t tokens(std::int64_t P) const { return recomputes() ? P + 1 : decode ? 1 : P; }
};

// Every stage, in the order of the registry.
std::vector<Stage> all_stages();

// What find_stage takes: the versions, then the stages.
std::vector<std::string> stage_words();

// A stage by its name; a bare version is its decode stage. Throws std::invalid_argument that lists the names.
Stage find_stage(std::string_view word);

}  // namespace kvfuse::bench
