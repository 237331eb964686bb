// What the command lines of the runner and its subcommands share: CLI11's findings as sentences of ours.
#pragma once

#include <string>
#include <vector>

#include "benchmark/table.h"

namespace CLI {
class App;
}  // namespace CLI

namespace kvfuse::bench {

// Reads the command line into what was declared to `app`, which allows extras. Returns the help text if that
// is asked for, and nothing otherwise. Throws ConfigError with a line for what CLI11 itself refuses, or for
// each word that looks like an option and is none.
std::string parse_words(CLI::App& app, int argc, const char* const* argv);

// The value of -o, or a problem.
void choose_format(const std::string& word, TableFormat& format, std::vector<std::string>& problems);

}  // namespace kvfuse::bench
