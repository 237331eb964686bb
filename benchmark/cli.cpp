#include "benchmark/cli.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <string_view>

#include "benchmark/cli_words.h"
#include "benchmark/compare_cli.h"
#include "benchmark/text.h"

namespace kvfuse::bench {
namespace {

constexpr const char* kDefaultConfig = "configs/default.yaml";

struct BenchmarkName {
  const char* cli;
  const char* log;
};
constexpr std::array kBenchmarks = {
    BenchmarkName{"latency", "latency_vs_T"},      BenchmarkName{"vram", "vram_vs_T"},
    BenchmarkName{"phase", "per_phase_breakdown"}, BenchmarkName{"capacity", "max_batch_capacity"},
    BenchmarkName{"perplexity", "perplexity"},     BenchmarkName{"roofline", "roofline"}};

constexpr const char* kFooter =
    R"(Precedence: command line, then the file of --config (default: configs/default.yaml if present), then built-in defaults.

Examples:
  bench_runner --config configs/smoke.yaml
  bench_runner latency --version v0 v1 v2 --clear-log
  bench_runner vram --preset gpt2-medium --version v1 v2 -o md
  bench_runner perplexity --dataset data/wikitext2.bin --weights model.safetensors --autoregressive
  bench_runner roofline --stages v1_prefill v1_decode v2_decode --profile-P 512
  bench_runner --resume
  bench_runner compare OLD.jsonl NEW.jsonl     (see bench_runner compare --help)
  bench_runner quantize IN OUT                 (see bench_runner quantize --help)

Exit codes:
  0 all measured   1 some points failed or ran out of memory   2 command line or configuration
  3 model or data file   4 disk, memory or lock   130, 143 interrupted (results kept)
)";

// What CLI11 fills; checked afterwards, so that all problems are found.
struct Raw {
  std::vector<std::string> benchmarks, more_benchmarks;
  std::string config, output = "table";
  std::map<std::string, std::string> texts;               // flag -> value
  std::map<std::string, std::vector<std::string>> lists;  // flag -> values
  std::map<std::string, bool> switches;                   // flag -> given
};

// A flag that sets a configuration key.
struct KeyFlag {
  const char* flag;
  const char* key;
  const char* type;  // nullptr: a switch
  const char* help;
  bool list = false;
};
constexpr std::array kKeyFlags = {
    KeyFlag{"--preset", "pretrained", "MODEL", "gpt2, gpt2-medium, gpt2-large or gpt2-xl"},
    KeyFlag{"--version", "versions", "V", "versions to compare (see --list-versions)", true},
    KeyFlag{"--dtype", "dtype", "float32|bfloat16|float16", "of weights and activations"},
    KeyFlag{"--batch-size", "batch_size", "N", "sequences at once"},
    KeyFlag{"--device", "device", "auto|cpu|cuda", "where to run"},
    KeyFlag{"--weights", "weights", "PATH", "safetensors file or folder (default: random weights)"},
    KeyFlag{"--dataset", "dataset", "FILE", "token file for perplexity (uint16, as nanoGPT writes it)"},
    KeyFlag{"--stages", "profile_stages", "S", "roofline: such as v1_prefill v1_decode; v1 is v1_decode",
            true},
    KeyFlag{"--profile-P", "profile_P", "N", "roofline: tokens of the prompt"},
    KeyFlag{"--overflow", "overflow", "error|slide|sink", "what happens beyond block_size"},
    KeyFlag{"--max-tokens", "max_tokens", "N", "perplexity: evaluate at most N tokens"},
    KeyFlag{"--log-file", "log_file", "FILE", "results, one JSON object a line, appended"},
    KeyFlag{"--autoregressive", "autoregressive", nullptr, "perplexity: token by token through the cache"},
    KeyFlag{"--training", "training", nullptr, "capacity: of training steps, not of generating"},
    KeyFlag{"--strict-weights", "strict_weights", nullptr, "NaN or infinity in the weights is an error"},
};

struct Switch {
  const char* flag;
  bool CliOptions::*member;
  const char* help;
};
constexpr std::array kSwitches = {
    Switch{"--clear-log", &CliOptions::clear_log, "empty the results file first"},
    Switch{"--resume", &CliOptions::resume, "measure only what the results file lacks"},
    Switch{"--dry-run", &CliOptions::dry_run, "print the plan, measure nothing"},
    Switch{"--quiet", &CliOptions::quiet, "no progress"},
    Switch{"--list-versions", &CliOptions::list_versions, "print the versions and end"},
    Switch{"--self-check", &CliOptions::self_check, "print what was built, try each operator and end"},
};

void declare(CLI::App& app, Raw& raw) {
  app.footer(kFooter);
  app.allow_extras();
  app.add_option("benchmarks", raw.benchmarks,
                 "latency, vram, phase, capacity, perplexity, roofline or all (the default)")
      ->type_name("BENCHMARK");
  app.add_option("--benchmark", raw.more_benchmarks,
                 "the same by log name: latency_vs_T, vram_vs_T, per_phase_breakdown, max_batch_capacity, "
                 "perplexity, "
                 "roofline")
      ->type_name("NAME");
  app.add_option("--config", raw.config, "YAML file")->type_name("FILE");
  for (const KeyFlag& flag : kKeyFlags) {
    if (flag.type == nullptr)
      app.add_flag(flag.flag, raw.switches[flag.flag], flag.help);
    else if (flag.list)
      app.add_option(flag.flag, raw.lists[flag.flag], flag.help)->type_name(flag.type);
    else
      app.add_option(flag.flag, raw.texts[flag.flag], flag.help)->type_name(flag.type);
  }
  for (const Switch& item : kSwitches) app.add_flag(item.flag, raw.switches[item.flag], item.help);
  app.add_flag("--no-fsync", raw.switches["--no-fsync"], "do not wait for the disk after each record");
  app.add_option("-o,--output", raw.output, "form of the summary")->type_name("table|md|csv|json");
}

void choose_benchmarks(const std::vector<std::string>& words, CliOptions& options,
                       std::vector<std::string>& problems) {
  std::vector<std::string> known = {"all"};
  for (const BenchmarkName& name : kBenchmarks) known.insert(known.end(), {name.cli, name.log});
  known.erase(std::unique(known.begin(), known.end()), known.end());
  std::vector<std::string>& chosen = options.benchmarks;
  bool all = words.empty();
  for (const std::string& word : words) {
    all = all || word == "all";
    const auto same = std::find_if(kBenchmarks.begin(), kBenchmarks.end(), [&](const BenchmarkName& name) {
      return word == name.cli || word == name.log;
    });
    if (same == kBenchmarks.end()) {
      if (word == "all") continue;
      if (word == kCompareWord) {
        problems.push_back("compare: expected as the first word, got it after others");
        continue;
      }
      problems.push_back(fmt::format("{}: expected a benchmark ({}){}", in_quotes(word), joined(known),
                                     suggestion(word, known)));
    } else if (std::find(chosen.begin(), chosen.end(), same->log) == chosen.end()) {
      chosen.emplace_back(same->log);
    }
  }
  options.all_benchmarks = all;
  if (all) chosen = benchmark_names();
}

YamlNode text_node(std::string text, bool quoted) {
  return {.kind = YamlNode::Kind::kScalar, .quoted = quoted, .text = std::move(text)};
}

void take_overrides(const CLI::App& app, const Raw& raw, CliOptions& options) {
  for (const KeyFlag& flag : kKeyFlags) {
    if (app.count(flag.flag) == 0) continue;
    YamlNode node;
    if (flag.type == nullptr) {
      node = text_node(raw.switches.at(flag.flag) ? "true" : "false", false);
    } else if (flag.list) {
      node.kind = YamlNode::Kind::kSequence;
      for (const std::string& word : raw.lists.at(flag.flag)) node.items.push_back(text_node(word, true));
    } else {
      // A number must look like one; everything else is text, as if quoted.
      const bool number = std::string_view(flag.type) == "N";
      node = text_node(raw.texts.at(flag.flag), !number);
    }
    options.overrides.emplace_back(flag.flag, std::move(node));
  }
}

void check_combinations(const CliOptions& options, const Raw& raw, std::vector<std::string>& problems) {
  if (options.clear_log && options.resume)
    problems.push_back("--resume: expected not beside --clear-log, got both (hint: drop one of them)");
  for (const auto& [flag, words] : raw.lists)
    for (const std::string& word : words)
      for (const BenchmarkName& name : kBenchmarks)
        if (word == name.cli || word == name.log || word == "all") {
          problems.push_back(
              fmt::format("{}: expected {}, got the benchmark {} (hint: name benchmarks before the options)",
                          flag, flag == "--stages" ? "stages" : "versions", in_quotes(word)));
          break;
        }
}

// Versions asked for on the command line are those of the roofline too, by their decode stages, unless stages
// are asked for as well.
void follow_versions(const CliOptions& options, ConfigDraft& draft) {
  const auto given = [&](const char* flag) {
    return std::find_if(options.overrides.begin(), options.overrides.end(),
                        [&](const auto& override) { return override.first == flag; });
  };
  if (given("--stages") != options.overrides.end() || draft.failed.contains("versions")) return;
  if (const auto versions = given("--version"); versions != options.overrides.end())
    override_key(draft, "profile_stages", versions->first, versions->second);
}

}  // namespace

std::vector<std::string> benchmark_names() {
  std::vector<std::string> names;
  for (const BenchmarkName& name : kBenchmarks) names.emplace_back(name.log);
  return names;
}

CliOptions parse_cli(int argc, const char* const* argv) {
  CLI::App app("Measures GPT-2 inference with different KV cache strategies.", "bench_runner");
  Raw raw;
  declare(app, raw);
  CliOptions options;
  options.help = parse_words(app, argc, argv);
  if (!options.help.empty()) return options;
  std::vector<std::string> problems;
  for (const Switch& item : kSwitches) options.*item.member = raw.switches[item.flag];
  options.fsync = !raw.switches["--no-fsync"];
  if (app.count("--config") > 0) options.config = raw.config;
  std::vector<std::string> words = raw.benchmarks;
  words.insert(words.end(), raw.more_benchmarks.begin(), raw.more_benchmarks.end());
  choose_benchmarks(words, options, problems);
  check_combinations(options, raw, problems);
  choose_format(raw.output, options.output, problems);
  if (!problems.empty()) throw ConfigError(std::move(problems));
  take_overrides(app, raw, options);
  return options;
}

BenchConfig resolve_config(const CliOptions& options) {
  ConfigDraft draft;
  if (options.config)
    draft = read_config_file(*options.config);
  else if (std::filesystem::exists(kDefaultConfig))
    draft = read_config_file(kDefaultConfig);
  for (const auto& [flag, node] : options.overrides) {
    const auto key = std::find_if(kKeyFlags.begin(), kKeyFlags.end(),
                                  [&flag = flag](const KeyFlag& known) { return flag == known.flag; });
    override_key(draft, key->key, flag, node);
  }
  follow_versions(options, draft);
  // These generate nothing: default lengths that do not fit the model are no mistake then.
  const bool generates =
      std::any_of(options.benchmarks.begin(), options.benchmarks.end(),
                  [](const std::string& name) { return name != "perplexity" && name != "roofline"; });
  if (!generates && !draft.config.origin.contains("T_values")) draft.failed.insert("T_values");
  return finish(std::move(draft));
}

}  // namespace kvfuse::bench
