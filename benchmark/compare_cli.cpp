#include "benchmark/compare_cli.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <string_view>
#include <system_error>
#include <vector>

#include "benchmark/cli_words.h"
#include "benchmark/errors.h"
#include "benchmark/text.h"

namespace kvfuse::bench {
namespace {

constexpr double kMostThresholdPercent = 1000;
constexpr const char* kCompareFooter =
    R"(Points are the same if their "case" is; of several records of a point the last counts. ratio, with its
95 % interval from low to high, is above 1 where NEW is better.

Verdicts:
  faster, slower   times: the interval lies beyond the threshold, and the difference stands among all points
  same             anything less
  better, worse    memory, capacity (exact) and perplexity (by more than 0.01 %)
  incomparable     the note says why: another machine or setting, not measured, only in one of the files

Examples:
  bench_runner compare before.jsonl after.jsonl
  bench_runner compare before.jsonl after.jsonl -o md > comparison.md
  bench_runner compare main.jsonl branch.jsonl --threshold 3 --fail-if-slower

Exit codes:
  0 compared, whatever the verdicts   1 something is slower or worse, with --fail-if-slower
  2 command line   3 a file is damaged, unreadable or of a newer version
)";

// Percent to a fraction.
void choose_threshold(const std::string& text, double& threshold, std::vector<std::string>& problems) {
  double percent = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), percent);
  const bool whole = result.ec == std::errc() && result.ptr == text.data() + text.size();
  if (whole && percent >= 0 && percent <= kMostThresholdPercent)
    threshold = percent / 100;
  else
    problems.push_back(fmt::format("--threshold: expected percent in [0, {}], got {}", kMostThresholdPercent,
                                   in_quotes(text)));
}

void choose_dedup(const std::string& word, Dedup& dedup, std::vector<std::string>& problems) {
  if (word == "first")
    dedup = Dedup::kFirst;
  else if (word != "last")
    problems.push_back(fmt::format("--dedup: expected first or last, got {}", in_quotes(word)));
}

}  // namespace

bool is_compare(int argc, const char* const* argv) {
  return argc > 1 && std::string_view(argv[1]) == kCompareWord;
}

CompareOptions parse_compare_cli(int argc, const char* const* argv) {
  CLI::App app("Says what became faster or slower from one results file to another.", "bench_runner compare");
  CompareOptions options;
  std::vector<std::string> files;
  std::string threshold = fmt::format("{}", 100 * options.threshold), output = table_format_names().front();
  std::string dedup = "last";
  app.footer(kCompareFooter);
  app.allow_extras();
  app.add_option("files", files, "two results files")->option_text("OLD NEW");
  app.add_option("--threshold", threshold,
                 "times that differ by less are the same (default " + threshold + ")")
      ->type_name("PERCENT");
  app.add_option("--dedup", dedup, "which record of a point measured several times counts (default last)")
      ->type_name("first|last");
  app.add_flag("--fail-if-slower", options.fail_if_slower, "exit with 1 if anything is slower or worse");
  app.add_option("-o,--output", output, "form of the comparison")->type_name("table|md|csv|json");
  options.help = parse_words(app, argc - 1, argv + 1);
  if (!options.help.empty()) return options;
  std::vector<std::string> problems;
  if (files.size() != 2)
    problems.push_back(
        fmt::format("compare: expected two results files, OLD and NEW, got {} (hint: see "
                    "bench_runner compare --help)",
                    files.size()));
  choose_threshold(threshold, options.threshold, problems);
  choose_dedup(dedup, options.dedup, problems);
  choose_format(output, options.output, problems);
  if (!problems.empty()) throw ConfigError(std::move(problems));
  options.old_path = files[0];
  options.new_path = files[1];
  return options;
}

}  // namespace kvfuse::bench
