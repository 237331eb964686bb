#include "benchmark/yaml_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <utility>

#include "benchmark/text.h"

namespace kvfuse::bench {
namespace {

using Kind = YamlNode::Kind;

constexpr std::int64_t kMostBytes = std::int64_t{1} << 60;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::size_t digits_at(std::string_view text, std::size_t at) {
  const auto end = std::find_if_not(text.begin() + at, text.end(), is_digit);
  return static_cast<std::size_t>(end - text.begin()) - at;
}

// Decimal without leading zeros, an optional minus before, an optional fraction and exponent after.
bool is_decimal(std::string_view text, bool integer) {
  std::size_t at = text.starts_with('-') ? 1 : 0;
  const std::size_t whole = digits_at(text, at);
  if (whole == 0 || (whole > 1 && text[at] == '0')) return false;
  at += whole;
  if (integer) return at == text.size();
  if (at < text.size() && text[at] == '.') {
    const std::size_t fraction = digits_at(text, at + 1);
    if (fraction == 0) return false;
    at += 1 + fraction;
  }
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    ++at;
    if (at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
    const std::size_t exponent = digits_at(text, at);
    if (exponent == 0) return false;
    at += exponent;
  }
  return at == text.size();
}

template <typename T>
bool from_text(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// Why a text that looks like a number is refused.
std::string_view number_hint(std::string_view text) {
  if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
  if (text.starts_with("0x") || text.starts_with("0X") || text.starts_with("0o"))
    return "write it in decimal";
  const std::size_t whole = digits_at(text, 0);
  if (whole > 1 && text[0] == '0') return "remove the leading zero: some YAML readers take it for octal";
  if (whole > 0 && whole < text.size() && (text[whole] == '_' || text[whole] == ','))
    return "write the digits without separators";
  if (whole > 0 && whole < text.size() && std::string_view(".eE").find(text[whole]) != std::string_view::npos)
    return "write all digits, without fraction or exponent";
  return "";
}

// Text that YAML itself would not take for text.
bool looks_typed(std::string_view text) {
  double number = 0;
  return is_decimal(text, false) || from_text(text, number) || !number_hint(text).empty() || text == "true" ||
         text == "false";
}

// Bytes in a unit: decimal as in MB, binary as in MiB; 0 if there is no such unit.
double unit_bytes(std::string_view unit) {
  if (unit.ends_with('B')) unit.remove_suffix(1);
  if (unit.empty()) return 1;
  const std::size_t power = std::string_view("KMG").find(static_cast<char>(std::toupper(unit[0]))) + 1;
  if (power == std::string_view::npos + 1) return 0;
  if (unit.size() == 1) return std::pow(1000.0, power);
  return unit.substr(1) == "i" ? std::pow(1024.0, power) : 0;
}

bool has_refused(const YamlNode& node) {
  return node.kind == Kind::kRefused || std::any_of(node.items.begin(), node.items.end(), has_refused);
}

}  // namespace

std::string message_prefix(const std::string& where, const std::string& key) {
  return where.empty() ? key : where.starts_with("--") ? where : fmt::format("{}: {}", where, key);
}

YamlValue::YamlValue(const YamlNode& node, std::string file, std::string key,
                     std::vector<std::string>& problems)
    : node_(node), file_(std::move(file)), key_(std::move(key)), problems_(problems) {}

std::string YamlValue::where() const {
  return file_.empty() ? key_ : fmt::format("{}:{}:{}", file_, node_.line, node_.column);
}

bool YamlValue::refused() const { return has_refused(node_); }

bool YamlValue::fail(std::string_view expected, std::string_view hint) const {
  std::string got;
  switch (node_.kind) {
    case Kind::kRefused:
      return false;
    case Kind::kNull:
      got = "nothing";
      break;
    case Kind::kScalar:
      got = (node_.quoted && !file_.empty() ? "the quoted text " : "") + in_quotes(node_.text);
      break;
    case Kind::kSequence:
      got = "a list";
      break;
    case Kind::kMap:
      got = "a mapping";
      break;
  }
  problems_.push_back(fmt::format("{}: expected {}, got {}{}", message_prefix(where(), key_), expected, got,
                                  hint.empty() ? "" : fmt::format(" (hint: {})", hint)));
  return false;
}

bool YamlValue::integer(std::int64_t least, std::int64_t most, std::int64_t& value) const {
  const std::string expected = fmt::format("integer in [{}, {}]", least, most);
  const bool is_integer = is_decimal(node_.text, true);
  if (!plain() || !is_integer) {
    if (node_.kind != Kind::kScalar) return fail(expected);
    return fail(expected, node_.quoted && is_integer ? "remove the quotes" : number_hint(node_.text));
  }
  std::int64_t parsed = 0;
  if (!from_text(node_.text, parsed) || parsed < least || parsed > most) return fail(expected);
  value = parsed;
  return true;
}

bool YamlValue::number(double least, double most, double& value) const {
  const std::string expected = fmt::format("number in [{}, {}]", least, most);
  const bool is_number = is_decimal(node_.text, false);
  if (!plain() || !is_number) {
    if (node_.kind != Kind::kScalar) return fail(expected);
    const bool bare_point = node_.text.starts_with('.') || node_.text.ends_with('.');
    return fail(expected, node_.quoted && is_number ? "remove the quotes"
                          : bare_point              ? "write digits on both sides of the point"
                                                    : number_hint(node_.text));
  }
  double parsed = 0;
  if (!from_text(node_.text, parsed) || !(parsed >= least && parsed <= most)) return fail(expected);
  value = parsed;
  return true;
}

bool YamlValue::boolean(bool& value) const {
  if (!plain() || (node_.text != "true" && node_.text != "false")) {
    const bool scalar = node_.kind == Kind::kScalar;
    return fail("true or false", scalar && node_.quoted ? "remove the quotes" : "");
  }
  value = node_.text == "true";
  return true;
}

bool YamlValue::choice(const std::vector<std::string>& known, std::string& value) const {
  const bool scalar = node_.kind == Kind::kScalar;
  if (!scalar || std::find(known.begin(), known.end(), node_.text) == known.end()) {
    const std::string near = scalar ? nearest(node_.text, known) : "";
    return fail("one of " + joined(known),
                near.empty() ? "" : fmt::format("did you mean {}?", in_quotes(near)));
  }
  value = node_.text;
  return true;
}

bool YamlValue::path(std::string& value) const {
  if (node_.kind != Kind::kScalar || node_.text.empty()) return fail("a path");
  if (plain() && looks_typed(node_.text)) return fail("a path", "put it in quotes if it is one");
  const bool control = std::any_of(node_.text.begin(), node_.text.end(),
                                   [](unsigned char c) { return c < 0x20 || c == 0x7F; });
  if (control) return fail("a path without control characters");
  if (node_.text.size() > 4096) return fail("a path of at most 4096 bytes");
  value = node_.text;
  return true;
}

bool YamlValue::byte_size(std::int64_t& value) const {
  constexpr std::string_view kExpected = "a size of at least 1 byte such as 2 GiB, 500 MB or 1048576";
  if (node_.kind != Kind::kScalar) return fail(kExpected);
  const std::string_view text = node_.text;
  const auto number_end =
      std::find_if_not(text.begin(), text.end(), [](char c) { return is_digit(c) || c == '.'; });
  const std::string_view number = text.substr(0, static_cast<std::size_t>(number_end - text.begin()));
  std::string_view unit = text.substr(number.size());
  if (unit.starts_with(' ')) unit.remove_prefix(1);
  const double unit_size = unit_bytes(unit);
  double amount = 0;
  if (!is_decimal(number, unit.empty()) || unit_size == 0 || !from_text(number, amount))
    return fail(kExpected, number_hint(number));
  if (!(amount * unit_size >= 1 && amount * unit_size <= static_cast<double>(kMostBytes)))
    return fail(fmt::format("a size in [1, {}] bytes", kMostBytes));
  value = std::llround(amount * unit_size);
  return true;
}

std::vector<YamlValue> YamlValue::list(std::size_t most) const {
  std::vector<YamlValue> values;
  const std::string expected = fmt::format("a list of 1 to {} values", most);
  if (node_.kind != Kind::kSequence) {
    fail(expected, node_.kind == Kind::kScalar ? fmt::format("write [{}]", printable(node_.text)) : "");
  } else if (node_.items.empty() || node_.items.size() > most) {
    problems_.push_back(
        fmt::format("{}: expected {}, got {}", message_prefix(where(), key_), expected,
                    node_.items.empty() ? "an empty list" : std::to_string(node_.items.size())));
  } else {
    // On the command line every value goes by the flag's name.
    for (std::size_t i = 0; i < node_.items.size(); ++i)
      values.emplace_back(node_.items[i], file_, file_.empty() ? key_ : fmt::format("{}[{}]", key_, i),
                          problems_);
  }
  return values;
}

std::vector<YamlValue> YamlValue::mapping(const std::vector<std::string>& known) const {
  std::vector<YamlValue> values;
  if (node_.kind != Kind::kMap) {
    fail("a mapping of keys");
    return values;
  }
  const std::string parent = key_.empty() ? "" : key_ + ".";
  for (std::size_t i = 0; i < node_.keys.size(); ++i) {
    const YamlKey& key = node_.keys[i];
    if (std::find(known.begin(), known.end(), key.text) != known.end()) {
      values.emplace_back(node_.items[i], file_, parent + key.text, problems_);
      continue;
    }
    const std::string hint = suggestion(key.text, known);
    problems_.push_back(fmt::format("{}:{}:{}: {}{}: expected a known key, got an unknown one{}", file_,
                                    key.line, key.column, parent, printable(key.text),
                                    hint.empty() ? fmt::format(" (hint: known: {})", joined(known)) : hint));
  }
  return values;
}

}  // namespace kvfuse::bench
