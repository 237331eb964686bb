#include "csrc/roofline/check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

namespace kvfuse::roofline {
namespace {

std::int64_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::int64_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<std::int64_t>(j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::int64_t diagonal = row[0];
    row[0] = static_cast<std::int64_t>(i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::int64_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.7g", value);
  return text;
}

std::string shown(std::string_view text, std::size_t most) {
  std::string result;
  for (const char c : text.substr(0, most)) {
    const bool printable = c >= 0x20 && c < 0x7f;
    result += printable ? c : '?';
  }
  return text.size() > most ? result + "..." : result;
}

void check_range(std::string_view field, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return;
  throw std::invalid_argument("roofline: expected " + std::to_string(least) + " <= " + std::string(field) +
                              " <= " + std::to_string(most) + ", got " + std::to_string(value));
}

void check_positive(std::string_view field, double value) {
  if (value > 0 && std::isfinite(value)) return;
  throw std::invalid_argument("roofline: expected " + std::string(field) +
                              " to be a positive finite number, got " + number_text(value));
}

void check_not_negative(std::string_view field, double value) {
  if (value >= 0 && std::isfinite(value)) return;
  throw std::invalid_argument("roofline: expected " + std::string(field) +
                              " to be a finite number of at least 0, got " + number_text(value));
}

void check_share(std::string_view field, double value) {
  if (value > 0 && value <= 1) return;
  throw std::invalid_argument("roofline: expected 0 < " + std::string(field) + " <= 1, got " +
                              number_text(value));
}

void check_divides(std::string_view divisor_field, std::int64_t divisor, std::string_view field,
                   std::int64_t value) {
  if (value % divisor == 0) return;
  throw std::invalid_argument("roofline: expected " + std::string(field) + " to be a multiple of " +
                              std::string(divisor_field) + ", got " + std::string(field) + " " +
                              std::to_string(value) + " and " + std::string(divisor_field) + " " +
                              std::to_string(divisor));
}

std::string normal_name(std::string_view name) {
  std::string result(name);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '-' || c == ' ') c = '_';
  }
  return result;
}

std::string nearest_name(std::string_view name, std::span<const std::string> known) {
  // Nobody means a name by so much more; the distance takes time in both lengths.
  const std::string wanted = normal_name(name.substr(0, 100));
  std::string best;
  std::int64_t least = INT64_MAX;
  for (const std::string& candidate : known) {
    const std::int64_t distance = edit_distance(wanted, normal_name(candidate));
    if (distance < least) {
      least = distance;
      best = candidate;
    }
  }
  return best;
}

void unknown_name(std::string_view what, std::string_view name, std::span<const std::string> known) {
  std::string list;
  for (const std::string& candidate : known) list += (list.empty() ? "" : ", ") + candidate;
  const std::string nearest = nearest_name(name, known);
  throw std::invalid_argument("roofline: " + std::string(what) + ": expected one of " + list + ", got \"" +
                              shown(name) + "\"" +
                              (nearest.empty() ? "" : " (did you mean " + nearest + "?)"));
}

}  // namespace kvfuse::roofline
