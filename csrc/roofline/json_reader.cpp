#include "csrc/roofline/json_reader.h"

#include <cmath>
#include <set>
#include <stdexcept>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

constexpr std::size_t kMostBytes = 16 << 20;
constexpr int kMostDepth = 16;

std::string value_text(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  return shown(value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace), 60);
}

}  // namespace

json parse_strictly(std::string_view text, const std::string& origin) {
  if (text.size() > kMostBytes)
    throw std::invalid_argument(origin + ": expected at most " + std::to_string(kMostBytes) +
                                " bytes of JSON, got " + std::to_string(text.size()));
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMostDepth)
      throw std::invalid_argument(origin + ": expected JSON nested at most " + std::to_string(kMostDepth) +
                                  " deep, got more");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
      throw std::invalid_argument(origin + ": expected every key once in its object, got " +
                                  value_text(parsed) + " twice");
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& error) {
    throw std::invalid_argument(origin +
                                ": expected JSON, got what the parser calls: " + shown(error.what(), 300));
  }
}

JsonObject::JsonObject(const json& value, std::string where, std::span<const std::string> known)
    : object_(value), where_(std::move(where)) {
  if (!value.is_object())
    throw std::invalid_argument(where_ + ": expected an object, got " + value_text(value));
  for (const auto& [key, unused] : value.items()) {
    bool found = false;
    for (const std::string& name : known) found = found || name == key;
    if (found) continue;
    throw std::invalid_argument(where_ + ": expected no key " + value_text(key) + " (did you mean \"" +
                                nearest_name(key, known) + "\"?)");
  }
}

void JsonObject::wrong(const std::string& key, const std::string& expected, const json& got) const {
  throw std::invalid_argument(where(key) + ": expected " + expected + ", got " + value_text(got));
}

const json& JsonObject::at(const char* key) const {
  const auto found = object_.find(key);
  if (found == object_.end())
    throw std::invalid_argument(where_ + ": expected the key \"" + key + "\", got none");
  return *found;
}

std::string JsonObject::text(const char* key) const {
  const json& value = at(key);
  if (!value.is_string() || value.get_ref<const std::string&>().empty())
    wrong(key, "a string that is not empty", value);
  return value.get<std::string>();
}

double JsonObject::number(const char* key, const char* expected) const {
  const json& value = at(key);
  if (!value.is_number() || !std::isfinite(value.get<double>())) wrong(key, expected, value);
  return value.get<double>();
}

double JsonObject::positive(const char* key) const {
  constexpr const char* kExpected = "a positive finite number";
  const double value = number(key, kExpected);
  if (!(value > 0)) wrong(key, kExpected, at(key));
  return value;
}

double JsonObject::not_negative(const char* key) const {
  constexpr const char* kExpected = "a finite number of at least 0";
  const double value = number(key, kExpected);
  if (!(value >= 0)) wrong(key, kExpected, at(key));
  return value;
}

std::int64_t JsonObject::whole(const char* key, std::int64_t least, std::int64_t most) const {
  const json& value = at(key);
  const std::string expected = "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
  // Of the parser's own conversions -1, 1.5 and 1e30 would come out as some other number.
  if (!value.is_number_integer()) wrong(key, expected, value);
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
    wrong(key, expected, value);
  const auto number = value.get<std::int64_t>();
  if (number < least || number > most) wrong(key, expected, value);
  return number;
}

const json& JsonObject::array(const char* key) const {
  const json& value = at(key);
  if (!value.is_array()) wrong(key, "an array", value);
  return value;
}

std::vector<std::string> JsonObject::texts(const char* key) const {
  std::vector<std::string> result;
  for (const json& value : array(key)) {
    if (!value.is_string() || value.get_ref<const std::string&>().empty())
      wrong(key, "strings that are not empty", value);
    result.push_back(value.get<std::string>());
  }
  return result;
}

}  // namespace kvfuse::roofline
