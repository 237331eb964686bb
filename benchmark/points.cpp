#include "benchmark/points.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include "benchmark/record_reader.h"

namespace kvfuse::bench {
namespace {

using nlohmann::json;

constexpr std::array kMeasures = {
    Measure{"latency_vs_T", "time_total_ms_samples", "total ms", Measure::Kind::kTimes, true},
    Measure{"vram_vs_T", "peak_memory_bytes", "peak bytes", Measure::Kind::kCount, true},
    Measure{"max_batch_capacity", "max_batch", "max batch", Measure::Kind::kCount, false},
    Measure{"perplexity", "perplexity", "perplexity", Measure::Kind::kQuality, true},
    Measure{"roofline", "time_total_ms_samples", "pass ms", Measure::Kind::kTimes, true}};

// How long it was measured, and what it was allowed, do not make another point.
constexpr std::array<std::string_view, 3> kNeverIdentity = {"num_warmup_runs", "num_measure_runs",
                                                            "memory_budget"};
// What the machine computes with changes times, but neither counts nor results.
constexpr std::array<std::string_view, 2> kIdentityOfTimes = {"isa", "num_threads"};

// Beyond these, a figure is no measurement, and arithmetic with it overflows.
constexpr double kLeast = 1e-12;
constexpr double kMost = 1e30;

template <std::size_t n>
bool contains(const std::array<std::string_view, n>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

json field(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() ? json() : *found;
}

std::string text_field(const json& object, const char* key) {
  const json value = field(object, key);
  return value.is_string() ? value.get<std::string>() : "";
}

// The members of an object, those of objects within it as "outer.inner".
json flat(const json& object) {
  json result = json::object();
  for (const auto& [key, value] : object.items()) {
    if (value.is_object())
      for (const auto& [inner, item] : value.items()) result[key + "." + inner] = item;
    else
      result[key] = value;
  }
  return result;
}

json identity_of(const json& case_key, const Measure* measure) {
  const bool of_times = measure == nullptr || measure->kind == Measure::Kind::kTimes;
  json identity = flat(case_key);
  for (const std::string_view key : kNeverIdentity) identity.erase(std::string(key));
  for (const std::string_view key : kIdentityOfTimes)
    if (!of_times) identity.erase(std::string(key));
  return identity;
}

void take_values(const json& record, const Measure& measure, Point& point) {
  const json value = field(record, measure.field);
  const json list = value.is_array() ? value : json::array({value});
  const auto usable = [](const json& item) {
    return item.is_number() && item.get<double>() >= kLeast && item.get<double>() <= kMost;
  };
  const auto bad = std::find_if_not(list.begin(), list.end(), usable);
  if (bad != list.end())
    point.values_problem = fmt::format("{}: expected positive numbers, got {}", measure.field,
                                       value.is_null()  ? "none"
                                       : bad->is_null() ? "null"
                                                        : "something else");
  else if (list.empty())
    point.values_problem = fmt::format("{}: expected numbers, got none", measure.field);
  else
    point.values = list.get<std::vector<double>>();
}

std::optional<Point> point_of(const json& record) {
  const json case_key = field(record, "case");
  Point point;
  point.benchmark = text_field(record, "benchmark_name");
  if (!case_key.is_object() || point.benchmark.empty()) return std::nullopt;
  const Measure* measure = find_measure(point.benchmark);
  point.version = text_field(case_key, case_key.contains("stage") ? "stage" : "version");
  if (const json T = field(case_key, "T"); T.is_number_integer()) point.T = T.dump();
  point.identity = identity_of(case_key, measure);
  point.identity["benchmark_name"] = point.benchmark;
  point.status = text_field(record, "status");
  point.reason = text_field(record, "reason");
  if (measure != nullptr) take_values(record, *measure, point);
  const json context = field(record, "context");
  point.context = context.is_object() ? context : json::object();
  for (const char* key : {"shortest_ms", "model_bytes", "model_flops"})
    point.limits[key] = field(record, key);
  return point;
}

}  // namespace

const Measure* find_measure(const std::string& benchmark) {
  const auto found = std::find_if(kMeasures.begin(), kMeasures.end(),
                                  [&](const Measure& known) { return benchmark == known.benchmark; });
  return found == kMeasures.end() ? nullptr : &*found;
}

PointFile read_points(const std::string& path, Dedup dedup) {
  PointFile file;
  std::size_t left_out = 0, passed_over = 0;
  const std::optional<std::string> torn = read_records(path, [&](const json& record) {
    std::optional<Point> point = point_of(record);
    if (!point) {
      ++passed_over;
      return;
    }
    const std::string key = point->identity.dump(-1, ' ', false, json::error_handler_t::replace);
    const auto [at, is_new] = file.index.emplace(key, file.points.size());
    if (is_new) {
      file.points.push_back(std::move(*point));
    } else {
      if (dedup == Dedup::kLast) file.points[at->second] = std::move(*point);
      ++left_out;
    }
  });
  if (torn) file.notices.push_back(*torn);
  if (passed_over > 0)
    file.notices.push_back(fmt::format("{}: passed over {} records that name no point", path, passed_over));
  if (left_out > 0)
    file.notices.push_back(fmt::format(
        "{}: of points measured several times the {} record counts; {} {} ones are left out", path,
        dedup == Dedup::kLast ? "last" : "first", left_out, dedup == Dedup::kLast ? "earlier" : "later"));
  if (file.points.empty()) file.notices.push_back(fmt::format("{}: holds no points", path));
  return file;
}

}  // namespace kvfuse::bench
