#include "benchmark/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "benchmark/text.h"

namespace kvfuse::bench {
namespace {

using nlohmann::json;

// Machines and thread counts round differently, by less than this.
constexpr double kQualityTolerance = 1e-4;
// How far two measurements of one machine's limits lie apart by chance.
constexpr double kLimitsTolerance = 0.10;

constexpr std::array kMachineKeys = {"cpu", "cores", "device", "gpu_name"};
// What one compares, or what explains a difference: worth a note.
constexpr std::array kNotedKeys = {"kvfuse_version", "torch", "compiler", "cuda_version", "cpu_governor"};

template <typename Keys>
json chosen(const json& object, const Keys& keys) {
  json result = json::object();
  for (const char* key : keys)
    if (const auto found = object.find(key); found != object.end() && !found->is_null()) result[key] = *found;
  return result;
}

// Why the figures of a pair must not be set beside each other; "" if they may.
std::string obstacle(const PointPair& points) {
  if (!points.after) return "only in the old file";
  if (!points.before) return "only in the new file";
  if (!points.same) return points.difference;
  const Measure* measure = find_measure(points.before->benchmark);
  if (measure == nullptr) return "nothing is known of this benchmark";
  const bool of_times = measure->kind == Measure::Kind::kTimes;
  if (of_times) {
    const json before = chosen(points.before->context, kMachineKeys);
    const json after = chosen(points.after->context, kMachineKeys);
    if (before != after) return "another machine: " + changes_text(before, after);
  }
  for (const auto& [name, point] : {std::pair{"old", &*points.before}, {"new", &*points.after}}) {
    if (point->status != "ok")
      return fmt::format("{}: {}{}", name,
                         point->status.empty() ? "status not recorded" : printable(point->status),
                         point->reason.empty() ? "" : " (" + printable(point->reason) + ")");
    if (!point->values_problem.empty()) return fmt::format("{}: {}", name, point->values_problem);
    if (const std::size_t count = point->values.size(); of_times && count < kFewestSamples)
      return fmt::format("{}: expected at least {} samples, got {} (hint: raise num_measure_runs)", name,
                         kFewestSamples, count);
  }
  return "";
}

// By how much the machine alone became faster, from its measured limits; 1 if that is not recorded, or not
// for the same work.
double machine_change(const Point& before, const Point& after) {
  for (const char* key : {"model_bytes", "model_flops"})
    if (before.limits[key] != after.limits[key]) return 1.0;
  const auto shortest = [](const Point& point) {
    const json& value = point.limits["shortest_ms"];
    return value.is_number() ? value.get<double>() : 0.0;
  };
  const double change = shortest(before) / shortest(after);
  return std::isfinite(change) && change > 0.0 ? change : 1.0;
}

// What shows that the machine was not steady: then even a large difference may be its own.
std::vector<std::string> unsteadiness(const PointPair& points) {
  std::vector<std::string> signs;
  for (const auto& [name, point] : {std::pair{"old", &*points.before}, {"new", &*points.after}})
    if (const double spread = spread_of(point->values); spread > kNoisySpread)
      signs.push_back(fmt::format("noisy: {} spreads by {:.1f} %", name, 100 * spread));
  const double change = machine_change(*points.before, *points.after);
  if (std::max(change, 1.0 / change) > 1.0 + kLimitsTolerance)
    signs.push_back(fmt::format("the machine's measured limits allowed {:.2f} times the speed", change));
  return signs;
}

void note_context(Compared& row) {
  const auto note = [&](const auto& keys) {
    const std::string changes =
        changes_text(chosen(row.points.before->context, keys), chosen(row.points.after->context, keys));
    if (!changes.empty()) row.notes.push_back(changes);
  };
  note(kNotedKeys);
  note(kMachineKeys);  // differ only where that does not matter
  if (!row.points.difference.empty()) row.notes.push_back(row.points.difference);
}

// `stands` is whether the difference stands among those of all points.
void judge_time(Compared& row, bool stands, double threshold) {
  row.verdict = Verdict::kSame;
  row.notes = unsteadiness(row.points);
  const int direction = beyond(*row.ratio, threshold);
  if (direction == 0) return;
  if (!stands)
    row.notes.push_back("a difference by itself, but not among so many points (hint: more samples)");
  else if (!row.notes.empty())
    row.verdict = Verdict::kIncomparable;
  else
    row.verdict = direction > 0 ? Verdict::kFaster : Verdict::kSlower;
}

void judge_value(Compared& row, const Measure& measure) {
  const double before = row.points.before->values.front();
  const double after = row.points.after->values.front();
  const double ratio = measure.less_is_better ? before / after : after / before;
  row.ratio = Ratio{.value = ratio, .low = ratio, .high = ratio};
  const double tolerance = measure.kind == Measure::Kind::kCount ? 0.0 : kQualityTolerance;
  if (std::abs(after - before) <= tolerance * before)
    row.verdict = Verdict::kSame;
  else
    row.verdict = ratio > 1.0 ? Verdict::kBetter : Verdict::kWorse;
}

// The middle of the spreads of all runs of the points.
double typical_spread(const std::vector<Compared*>& timed) {
  std::vector<double> spreads;
  for (const Compared* row : timed)
    for (const Point* point : {&*row->points.before, &*row->points.after})
      spreads.push_back(spread_of(point->values));
  return spreads.empty() ? 0.0 : median(spreads);
}

// Together, since points share the error that is allowed, and what is known of the noise.
void judge_times(const std::vector<Compared*>& timed, double threshold) {
  const double spread = typical_spread(timed);
  std::vector<double> p_values;
  for (Compared* row : timed) {
    const Evidence evidence = weigh(row->points.before->values, row->points.after->values, threshold, spread);
    row->ratio = evidence.ratio;
    p_values.push_back(evidence.p_value);
  }
  const std::vector<bool> stands = stands_together(p_values);
  for (std::size_t i = 0; i < timed.size(); ++i) judge_time(*timed[i], stands[i], threshold);
}

void judge(std::vector<Compared>& rows, double threshold) {
  std::vector<Compared*> timed;
  for (Compared& row : rows) {
    if (const std::string reason = obstacle(row.points); !reason.empty())
      row.notes.push_back(reason);
    else if (const Measure& measure = *find_measure(row.points.before->benchmark);
             measure.kind == Measure::Kind::kTimes)
      timed.push_back(&row);
    else
      judge_value(row, measure);
  }
  judge_times(timed, threshold);
  for (Compared& row : rows)
    if (row.ratio) note_context(row);
}

using Group = std::tuple<std::string, std::string, std::string>;  // benchmark, version, T

// For each benchmark, version and T the keys by which its points are told apart.
std::map<Group, std::set<std::string>> telling_keys(const Comparison& comparison) {
  std::map<Group, std::map<std::string, std::set<std::string>>> values;
  std::map<Group, std::set<std::string>> telling;
  for (const Compared& row : comparison.rows) {
    const Point& point = row.points.before ? *row.points.before : *row.points.after;
    const Group group = {point.benchmark, point.version, point.T};
    for (const auto& [key, value] : point.identity.items()) {
      std::set<std::string>& known = values[group][key];
      known.insert(value.dump(-1, ' ', false, json::error_handler_t::replace));
      if (known.size() > 1) telling[group].insert(key);
    }
  }
  return telling;
}

std::string setting_text(const Point& point, const std::set<std::string>& keys) {
  std::vector<std::string> settings;
  for (const std::string& key : keys)
    if (const auto value = point.identity.find(key); value != point.identity.end())
      settings.push_back(
          fmt::format("{}={}", printable(key),
                      printable(value->is_string() ? value->get<std::string>() : value->dump())));
  return joined(settings);
}

struct Figures {
  std::string value = "-", spread = "-";
};

Figures figures_of(const std::optional<Point>& point, const Measure* measure) {
  if (!point || measure == nullptr || point->values.empty()) return {};
  const double value = median(point->values);
  if (measure->kind == Measure::Kind::kCount) return {.value = fmt::format("{:.0f}", value)};
  if (measure->kind == Measure::Kind::kQuality) return {.value = fmt::format("{:.6f}", value)};
  Figures figures{.value = fmt::format("{:.3f}", value)};
  if (point->values.size() > 1) figures.spread = fmt::format("{:.1f}", 100 * spread_of(point->values));
  return figures;
}

}  // namespace

std::size_t Comparison::count(Verdict verdict) const {
  return static_cast<std::size_t>(
      std::count_if(rows.begin(), rows.end(), [&](const Compared& row) { return row.verdict == verdict; }));
}

Comparison compare_points(PointFile before, PointFile after, double threshold) {
  Comparison comparison;
  for (const PointFile* file : {&before, &after})
    comparison.notices.insert(comparison.notices.end(), file->notices.begin(), file->notices.end());
  for (PointPair& points : pair_points(std::move(before), std::move(after)))
    comparison.rows.push_back({.points = std::move(points), .ratio = std::nullopt, .notes = {}});
  judge(comparison.rows, threshold);
  return comparison;
}

Comparison compare_files(const std::string& old_path, const std::string& new_path, double threshold,
                         Dedup dedup) {
  PointFile before = read_points(old_path, dedup);
  return compare_points(std::move(before), read_points(new_path, dedup), threshold);
}

Table comparison_table(const Comparison& comparison) {
  Table table{.headers = {"benchmark", "version", "T", "setting", "measure", "old", "new", "ratio", "low",
                          "high", "verdict", "old spread %", "new spread %", "note"},
              .rows = {}};
  const std::map<Group, std::set<std::string>> telling = telling_keys(comparison);
  for (const Compared& row : comparison.rows) {
    const Point& point = row.points.before ? *row.points.before : *row.points.after;
    const Measure* measure = find_measure(point.benchmark);
    const auto keys = telling.find({point.benchmark, point.version, point.T});
    const Figures before = figures_of(row.points.before, measure);
    const Figures after = figures_of(row.points.after, measure);
    const auto part = [&](double Ratio::*member) {
      return row.ratio ? fmt::format("{:.4f}", (*row.ratio).*member) : std::string("-");
    };
    table.rows.push_back({printable(point.benchmark), printable(point.version), point.T,
                          keys == telling.end() ? "" : setting_text(point, keys->second),
                          measure == nullptr ? "-" : measure->shown, before.value, after.value,
                          part(&Ratio::value), part(&Ratio::low), part(&Ratio::high),
                          std::string(verdict_name(row.verdict)), before.spread, after.spread,
                          fmt::format("{}", fmt::join(row.notes, "; "))});
  }
  return table;
}

std::string comparison_summary(const Comparison& comparison) {
  std::vector<std::string> counts;
  for (const Verdict verdict : {Verdict::kSame, Verdict::kFaster, Verdict::kSlower, Verdict::kBetter,
                                Verdict::kWorse, Verdict::kIncomparable})
    if (const std::size_t count = comparison.count(verdict); count > 0)
      counts.push_back(fmt::format("{} {}", count, verdict_name(verdict)));
  return fmt::format("{} point{}{}{}", comparison.rows.size(), comparison.rows.size() == 1 ? "" : "s",
                     counts.empty() ? "" : ": ", joined(counts));
}

}  // namespace kvfuse::bench
