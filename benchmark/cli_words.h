// What the command lines of the runner and its subcommands share: CLI11's findings as sentences of ours.
#pragma once

#include <string>
#include <vector>

#include "benchmark/table.h"

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

namespace kvfuse::bench {

// One line for what CLI11 itself refuses.
std::string usage_problem(const CLI::ParseError& error);

// A line for each word that looks like an option and is none of `app`, which allows extras.
std::vector<std::string> unknown_options(const CLI::App& app);

// The value of -o, or a problem.
void choose_format(const std::string& word, TableFormat& format, std::vector<std::string>& problems);

}  // namespace kvfuse::bench
