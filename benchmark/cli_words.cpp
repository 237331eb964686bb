#include "benchmark/cli_words.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "benchmark/errors.h"
#include "benchmark/text.h"

namespace kvfuse::bench {
namespace {

std::vector<std::string> flag_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

std::string usage_problem(const CLI::ParseError& error) {
  std::string text = error.what();
  std::replace(text.begin(), text.end(), '\n', ' ');
  const std::size_t missing = text.find(": 1 required");
  if (missing != std::string::npos)
    return text.substr(0, missing) + ": expected a value, got none (hint: see --help)";
  return fmt::format("command line: expected valid options, got: {} (hint: see --help)", text);
}

std::vector<std::string> unknown_options(const CLI::App& app) {
  std::vector<std::string> problems;
  for (const std::string& word : app.remaining()) {
    const std::string name = word.substr(0, word.find('='));
    const std::string hint = suggestion(name, flag_names(app));
    problems.push_back(fmt::format("{}: expected a known option, got an unknown one{}", printable(name),
                                   hint.empty() ? " (hint: see --help)" : hint));
  }
  return problems;
}

}  // namespace

std::string parse_words(CLI::App& app, int argc, const char* const* argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return app.help();
  } catch (const CLI::ParseError& error) {
    throw ConfigError({usage_problem(error)});
  }
  // The value of an unknown option looks like an argument: only the option is reported.
  std::vector<std::string> problems = unknown_options(app);
  if (!problems.empty()) throw ConfigError(std::move(problems));
  return "";
}

void choose_format(const std::string& word, TableFormat& format, std::vector<std::string>& problems) {
  const std::vector<std::string>& formats = table_format_names();
  const auto known = std::find(formats.begin(), formats.end(), word);
  if (known == formats.end())
    problems.push_back(fmt::format("-o: expected one of {}, got {}", joined(formats), in_quotes(word)));
  else
    format = static_cast<TableFormat>(known - formats.begin());
}

}  // namespace kvfuse::bench
