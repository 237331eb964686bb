// A table of texts, rendered for a terminal, Markdown, a spreadsheet or a program.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvfuse::bench {

enum class TableFormat { kTable, kMarkdown, kCsv, kJson };

// The names that -o takes: table, md, csv, json, in the order of the enum.
const std::vector<std::string>& table_format_names();

struct Table {
  std::vector<std::string> headers;
  std::vector<std::vector<std::string>> rows;  // each as long as `headers`; "" or "-" where there is no value
};

// Ends with a newline. Columns of numbers are right-aligned, and numbers in JSON. Throws
// std::invalid_argument on a row of another length.
std::string render(const Table& table, TableFormat format);

}  // namespace kvfuse::bench
