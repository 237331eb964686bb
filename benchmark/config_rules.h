// The rules of a configuration that span several keys.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "benchmark/config.h"

namespace kvfuse::bench {

// Adds a sentence to `problems` for each rule that is broken. A rule is passed over if one of its keys is in
// `failed`: it has a problem of its own.
void check_across(const BenchConfig& config, const std::set<std::string>& failed,
                  std::vector<std::string>& problems);

}  // namespace kvfuse::bench
