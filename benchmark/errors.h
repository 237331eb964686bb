// The exit codes of bench_runner and the exceptions that lead to them; ResourceError is in csrc/records.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace kvfuse::bench {

enum class ExitCode : int {
  kOk = 0,
  kPointsFailed = 1,  // the run is complete, but some points failed or ran out of memory
  kUsage = 2,         // command line or configuration
  kDataFile = 3,      // model or data file
  kResources = 4,     // disk, memory, lock
  kSignalBase = 128,  // + the signal: 130 after SIGINT, 143 after SIGTERM
};

// Everything that is wrong with the command line and the configuration file; what() joins it with newlines.
class ConfigError : public std::runtime_error {
 public:
  explicit ConfigError(std::vector<std::string> problems)
      : std::runtime_error(join(problems)), problems_(std::move(problems)) {}
  const std::vector<std::string>& problems() const { return problems_; }

 private:
  static std::string join(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) text += (text.empty() ? "" : "\n") + line;
    return text;
  }
  std::vector<std::string> problems_;
};

}  // namespace kvfuse::bench
