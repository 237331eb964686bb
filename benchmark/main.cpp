// bench_runner: reads the configuration, runs the benchmarks, prints the summaries, and says by its exit code
// how it went.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "benchmark/cli.h"
#include "benchmark/compare.h"
#include "benchmark/compare_cli.h"
#include "benchmark/device.h"
#include "benchmark/errors.h"
#include "benchmark/interrupt.h"
#include "benchmark/memory.h"
#include "benchmark/plan.h"
#include "benchmark/quantize.h"
#include "benchmark/self_check.h"
#include "benchmark/session.h"
#include "benchmark/suites/suites.h"
#include "csrc/model/model_file.h"
#include "csrc/ops/build_info.h"
#include "csrc/records/cpu_state.h"
#include "csrc/text/token_file.h"

namespace kvfuse::bench {
namespace {

struct Suite {
  const char* name;  // as the log has it
  Table (*run)(Session&);
};
constexpr std::array kSuites = {
    Suite{"latency_vs_T", run_latency},      Suite{"vram_vs_T", run_vram},
    Suite{"per_phase_breakdown", run_phase}, Suite{"max_batch_capacity", run_capacity},
    Suite{"perplexity", run_perplexity},     Suite{"roofline", run_roofline}};

void fail(const std::string& problem) { std::fprintf(stderr, "bench_runner: error: %s\n", problem.c_str()); }

// What a benchmark lacks to be run; empty if nothing.
std::string missing_for(const std::string& benchmark, const BenchConfig& config, c10::Device device) {
  if (benchmark == "perplexity" && !config.dataset)
    return "a token file in the key dataset or the flag --dataset, got none (make data writes one)";
  if (benchmark == "perplexity" && config.overflow != Overflow::kError && !config.autoregressive)
    return "autoregressive: true beside overflow: slide or sink, got false (one pass over a window never "
           "overflows)";
  if (benchmark == "max_batch_capacity" && device.is_cpu() && !config.memory_budget)
    return "a memory_budget on the CPU, got none (such as memory_budget: 2 GiB; a GPU has its own limit)";
  return "";
}

// The named benchmarks, less those that lack something if all were asked for.
std::vector<std::string> chosen_benchmarks(const CliOptions& options, const BenchConfig& config,
                                           c10::Device device) {
  std::vector<std::string> names;
  for (const std::string& name : options.benchmarks) {
    const std::string missing = missing_for(name, config, device);
    if (missing.empty())
      names.push_back(name);
    else if (!options.all_benchmarks)
      throw ConfigError({name + ": expected " + missing});
    else if (!options.quiet)
      std::fprintf(stderr, "%s is left out: expected %s\n", name.c_str(), missing.c_str());
  }
  return names;
}

void warn_of_slow_dtype(const BenchConfig& config, c10::Device device, const CliOptions& options) {
  if (config.dtype == DType::kFloat32 || !device.is_cpu() || options.quiet) return;
  std::fprintf(stderr,
               "warning: matrix products in %s can be 100 times slower than in float32 on a CPU without "
               "instructions for them\n",
               dtype_name(config.dtype));
}

// To stdout, or ResourceError: a summary that got lost must not look like success. Nobody reading it is no
// error.
void print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  if (std::fflush(stdout) != 0 && errno != EPIPE)
    throw ResourceError(std::string("standard output: expected room for the summary, got: ") +
                        std::strerror(errno));
}

// Tables one after the other; as JSON one document: the rows of a lone benchmark, or an object of them by
// name.
std::string summary_text(const std::vector<std::pair<std::string, Table>>& summaries, TableFormat format,
                         const BenchConfig& config) {
  const bool as_object = format == TableFormat::kJson && summaries.size() != 1;
  std::string text;
  for (const auto& [name, table] : summaries) {
    if (format == TableFormat::kTable)
      text += "\n" + name + ", " + config.model_name + " " + dtype_name(config.dtype) + "\n";
    else if (as_object)
      text += (text.empty() ? "{\"" : ",\"") + name + "\":";
    else if (!text.empty())
      text += "\n";
    text += render(table, format);
  }
  return as_object ? (text.empty() ? "{" : text) + "}\n" : text;
}

ExitCode run(const CliOptions& options) {
  const BenchConfig config = resolve_config(options);
  const c10::Device device = choose_device(config);
  ops::build_info();             // a wrong KVFUSE_ISA is an error now, not in the middle
  install_interrupt_handlers();  // before anything is said: nobody may be listening
  const std::vector<std::string> benchmarks = chosen_benchmarks(options, config, device);
  if (options.dry_run) {
    print(render(plan(config, benchmarks, memory_limit(config, device)), options.output));
    return ExitCode::kOk;
  }
  warn_of_slow_dtype(config, device, options);
  if (!options.quiet)
    for (const std::string& warning : cpu_state_warnings(read_cpu_state()))
      std::fprintf(stderr, "warning: %s\n", warning.c_str());
  request_huge_pages();
  install_counting_allocator(config.memory_budget);
  if (config.num_threads) at::set_num_threads(static_cast<int>(*config.num_threads));

  const Inputs inputs = load_inputs(config, device, benchmarks);
  RecordLog log(config.log_file, {.sync = options.fsync, .clear = options.clear_log});
  for (const std::string& notice : log.notices()) std::fprintf(stderr, "%s\n", notice.c_str());
  Session session(config, options, inputs, log);
  std::vector<std::pair<std::string, Table>> summaries;
  for (const Suite& suite : kSuites) {
    if (std::find(benchmarks.begin(), benchmarks.end(), suite.name) == benchmarks.end()) continue;
    summaries.emplace_back(suite.name, suite.run(session));
    if (interrupted_signal() != 0) break;
  }
  print(summary_text(summaries, options.output, config));
  if (interrupted_signal() != 0) {
    fail("interrupted; what was measured is in " + log.path() + " (--resume measures the rest)");
    return static_cast<ExitCode>(static_cast<int>(ExitCode::kSignalBase) + interrupted_signal());
  }
  return session.any_point_failed() ? ExitCode::kPointsFailed : ExitCode::kOk;
}

ExitCode compare(const CompareOptions& options) {
  if (!options.help.empty()) {
    print(options.help);
    return ExitCode::kOk;
  }
  const Comparison comparison =
      compare_files(options.old_path, options.new_path, options.threshold, options.dedup);
  for (const std::string& notice : comparison.notices) std::fprintf(stderr, "%s\n", notice.c_str());
  print(render(comparison_table(comparison), options.output));
  std::fprintf(stderr, "%s\n", comparison_summary(comparison).c_str());
  return options.fail_if_slower && comparison.any_worse() ? ExitCode::kPointsFailed : ExitCode::kOk;
}

ExitCode quantize(const QuantizeOptions& options) {
  if (!options.help.empty()) {
    print(options.help);
    return ExitCode::kOk;
  }
  print(quantize_file(options) + "\n");
  return ExitCode::kOk;
}

ExitCode dispatch(int argc, const char* const* argv) {
  if (is_quantize(argc, argv)) return quantize(parse_quantize_cli(argc, argv));
  if (is_compare(argc, argv)) return compare(parse_compare_cli(argc, argv));
  const CliOptions options = parse_cli(argc, argv);
  if (!options.help.empty()) {
    print(options.help);
    return ExitCode::kOk;
  }
  if (options.list_versions) {
    print(render(version_table(), options.output));
    return ExitCode::kOk;
  }
  if (options.self_check) return self_check() ? ExitCode::kOk : ExitCode::kPointsFailed;
  return run(options);
}

// Every way to fail ends here, in one line a problem and an exit code.
ExitCode guarded_main(int argc, const char* const* argv) {
  try {
    return dispatch(argc, argv);
  } catch (const ConfigError& error) {
    for (const std::string& problem : error.problems()) fail(problem);
    return ExitCode::kUsage;
  } catch (const ModelFileError& error) {
    fail(error.what());
    return ExitCode::kDataFile;
  } catch (const DataFileError& error) {
    fail(error.what());
    return ExitCode::kDataFile;
  } catch (const ResourceError& error) {
    fail(error.what());
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    fail("the system has no memory left");
  } catch (const std::exception& error) {
    fail(error.what());
    return ExitCode::kUsage;
  }
  return ExitCode::kResources;
}

}  // namespace
}  // namespace kvfuse::bench

int main(int argc, char** argv) { return static_cast<int>(kvfuse::bench::guarded_main(argc, argv)); }
