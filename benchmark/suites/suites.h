// The benchmarks: each measures its points through the session and returns its summary table.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "benchmark/session.h"
#include "benchmark/table.h"

namespace kvfuse::bench {

Table run_latency(Session& session);
Table run_vram(Session& session);
Table run_phase(Session& session);
Table run_capacity(Session& session);
Table run_perplexity(Session& session);
Table run_roofline(Session& session);

// The records of this run's points, those of an earlier run that --resume kept among them: the last of each
// case.
class Results {
 public:
  Results(Session& session, const std::string& benchmark);
  // Null if the point was not measured to its end.
  const json* find(const json& case_key) const;

 private:
  std::vector<json> records_;
};

// "12.3", or "-" if `value` is null or missing.
std::string number_text(const json& record, const std::string& key, int decimals, double divisor = 1.0);
std::string fixed(double value, int decimals);

}  // namespace kvfuse::bench
