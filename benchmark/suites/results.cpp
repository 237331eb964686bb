// What the summaries of the suites share.
#include <cstdio>

#include "benchmark/suites/suites.h"

namespace kvfuse::bench {

namespace {

// "" if the record has no such text: other programs may have written to the file.
std::string text_of(const json& record, const char* key) {
  const auto field = record.find(key);
  return field != record.end() && field->is_string() ? field->get<std::string>() : "";
}

}  // namespace

Results::Results(Session& session, const std::string& benchmark) {
  session.log().for_each([&](const json& record) {
    if (text_of(record, "benchmark_name") == benchmark && record.contains("case")) records_.push_back(record);
  });
}

const json* Results::find(const json& case_key) const {
  for (auto record = records_.rbegin(); record != records_.rend(); ++record)
    if ((*record)["case"] == case_key) return text_of(*record, "status") == "ok" ? &*record : nullptr;
  return nullptr;
}

std::string fixed(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

std::string number_text(const json& record, const std::string& key, int decimals, double divisor) {
  if (!record.contains(key) || !record[key].is_number()) return "-";
  return fixed(record[key].get<double>() / divisor, decimals);
}

}  // namespace kvfuse::bench
