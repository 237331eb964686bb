// Strict reading of JSON files of the toolkit: what a file does not say as it should is an error, never a
// guess. Private to csrc/roofline.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvfuse::roofline {

using nlohmann::json;

// Parses `text`. Too long or too deeply nested input, a duplicate key, NaN and whatever else is no JSON throw
// std::invalid_argument: "<origin>: ...".
json parse_strictly(std::string_view text, const std::string& origin);

// A JSON object and where it stands, for messages. Each getter throws std::invalid_argument with one
// sentence that names file, place, rule and value.
class JsonObject {
 public:
  // Refuses keys beside `known`, with the nearest of them.
  JsonObject(const json& value, std::string where, std::span<const std::string> known);

  bool has(const char* key) const { return object_.contains(key); }
  const json& at(const char* key) const;
  std::string where(const std::string& key) const { return where_ + "." + key; }
  const std::string& where() const { return where_; }

  std::string text(const char* key) const;  // not empty
  double positive(const char* key) const;
  double not_negative(const char* key) const;
  std::int64_t whole(const char* key, std::int64_t least, std::int64_t most) const;
  const json& array(const char* key) const;
  std::vector<std::string> texts(const char* key) const;

 private:
  [[noreturn]] void wrong(const std::string& key, const std::string& expected, const json& got) const;
  double number(const char* key, const char* expected) const;

  const json& object_;
  const std::string where_;
};

}  // namespace kvfuse::roofline
