#include "benchmark/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "benchmark/text.h"

namespace kvfuse::bench {
namespace {

using nlohmann::ordered_json;
using Row = std::vector<std::string>;

bool is_absent(const std::string& cell) { return cell.empty() || cell == "-"; }

// Starts as a number does: "1.98x", "+0.8 %" and "3.1 ± 0.2" are aligned like 3.1.
bool is_numeric(const std::string& cell) {
  const std::size_t at = cell.starts_with('-') || cell.starts_with('+') ? 1 : 0;
  return cell.size() > at && cell[at] >= '0' && cell[at] <= '9';
}

bool is_number(const std::string& cell) {
  return is_numeric(cell) && ordered_json::accept(cell) && ordered_json::parse(cell).is_number();
}

template <typename Predicate>
bool whole_column(const Table& table, std::size_t column, Predicate holds) {
  bool any = false;
  for (const Row& row : table.rows) {
    if (is_absent(row[column])) continue;
    if (!holds(row[column])) return false;
    any = true;
  }
  return any;
}

// Columns on the screen: code points, which serves for the scripts that occur here.
std::size_t width(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string padded(const std::string& text, std::size_t to, bool right) {
  const std::string space(to - std::min(to, width(text)), ' ');
  return right ? space + text : text + space;
}

std::string replaced(std::string text, std::string_view what, std::string_view by) {
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size())
    text.replace(at, what.size(), by);
  return text;
}

// No control character reaches the terminal.
std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, ' ');
  return text;
}

std::string for_markdown(const std::string& cell) {
  std::string text = one_line(cell);
  for (const auto& [what, by] :
       {std::pair{"&", "&amp;"}, {"<", "&lt;"}, {"\\", "\\\\"}, {"|", "\\|"}, {"`", "\\`"}})
    text = replaced(std::move(text), what, by);
  return text;
}

std::string for_csv(const std::string& cell) {
  if (cell.find_first_of(",\"\r\n") == std::string::npos) return cell;
  return "\"" + replaced(cell, "\"", "\"\"") + "\"";
}

// Rows of padded cells; `rule` draws the line below the headers from the widths.
template <typename Escape, typename Line, typename Rule>
std::string aligned(const Table& table, Escape escape, Line line, Rule rule) {
  std::vector<Row> rows = {table.headers};
  rows.insert(rows.end(), table.rows.begin(), table.rows.end());
  std::vector<std::size_t> widths(table.headers.size(), 3);  // Markdown needs three dashes
  for (Row& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] = escape(row[i]);
      widths[i] = std::max(widths[i], width(row[i]));
    }
  std::vector<bool> right(widths.size());
  for (std::size_t i = 0; i < widths.size(); ++i) right[i] = whole_column(table, i, is_numeric);
  std::string text;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t i = 0; i < widths.size(); ++i) rows[r][i] = padded(rows[r][i], widths[i], right[i]);
    text += line(rows[r]) + "\n";
    if (r == 0) text += rule(widths, right) + "\n";
  }
  return text;
}

std::string as_text(const Table& table) {
  return aligned(
      table, one_line,
      [](const Row& cells) {
        std::string text = fmt::format("{}", fmt::join(cells, "  "));
        return text.erase(text.find_last_not_of(' ') + 1);
      },
      [](const std::vector<std::size_t>& widths, const std::vector<bool>&) {
        Row dashes;
        for (const std::size_t w : widths) dashes.emplace_back(w, '-');
        return fmt::format("{}", fmt::join(dashes, "  "));
      });
}

std::string as_markdown(const Table& table) {
  return aligned(
      table, for_markdown, [](const Row& cells) { return fmt::format("| {} |", fmt::join(cells, " | ")); },
      [](const std::vector<std::size_t>& widths, const std::vector<bool>& right) {
        Row dashes;
        for (std::size_t i = 0; i < widths.size(); ++i)
          dashes.push_back(std::string(widths[i] - 1, '-') + (right[i] ? ":" : "-"));
        return fmt::format("| {} |", fmt::join(dashes, " | "));
      });
}

std::string as_csv(const Table& table) {
  std::string text;
  const auto add = [&](Row row) {
    std::transform(row.begin(), row.end(), row.begin(), for_csv);
    text += fmt::format("{}\n", fmt::join(row, ","));
  };
  add(table.headers);
  for (const Row& row : table.rows) add(row);
  return text;
}

std::string as_json(const Table& table) {
  ordered_json rows = ordered_json::array();
  for (const Row& row : table.rows) {
    ordered_json& object = rows.emplace_back(ordered_json::object());
    for (std::size_t i = 0; i < row.size(); ++i) {
      ordered_json& value = object[table.headers[i]];
      if (is_absent(row[i])) continue;
      if (whole_column(table, i, is_number))
        value = ordered_json::parse(row[i]);
      else
        value = row[i];
    }
  }
  return rows.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

const std::vector<std::string>& table_format_names() {
  static const std::vector<std::string> kNames = {"table", "md", "csv", "json"};
  return kNames;
}

std::string render(const Table& table, TableFormat format) {
  for (const Row& row : table.rows)
    if (row.size() != table.headers.size())
      throw std::invalid_argument(
          fmt::format("table: expected rows of {} cells, got {}", table.headers.size(), row.size()));
  switch (format) {
    case TableFormat::kTable:
      return as_text(table);
    case TableFormat::kMarkdown:
      return as_markdown(table);
    case TableFormat::kCsv:
      return as_csv(table);
    case TableFormat::kJson:
      return as_json(table);
  }
  return "";
}

}  // namespace kvfuse::bench
