// Typed, strict reading of one YAML value; the command line passes its values through the same rules.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "benchmark/yaml_reader.h"

namespace kvfuse::bench {

// A value and what it is called in messages. Each reader sets `value` and returns true, or reports one
// problem. Refused nodes have been reported before and are passed over.
class YamlValue {
 public:
  // `file` is empty for a command line option, whose `key` is the flag.
  YamlValue(const YamlNode& node, std::string file, std::string key, std::vector<std::string>& problems);

  bool integer(std::int64_t least, std::int64_t most, std::int64_t& value) const;
  bool number(double least, double most, double& value) const;
  bool boolean(bool& value) const;
  bool choice(const std::vector<std::string>& known, std::string& value) const;
  bool path(std::string& value) const;
  // "2 GiB", "500 MB" or an integer number of bytes.
  bool byte_size(std::int64_t& value) const;
  // The values of a list of 1 to `most` entries; empty if it is none.
  std::vector<YamlValue> list(std::size_t most) const;
  // The entries of a mapping whose keys must be known.
  std::vector<YamlValue> mapping(const std::vector<std::string>& known) const;

  // The value, or a part of it, has been reported before.
  bool refused() const;
  bool is_null() const { return node_.kind == YamlNode::Kind::kNull; }
  const std::string& key() const { return key_; }
  std::string where() const;  // "file:line:col", or the flag
  // Reports "expected <expected>, got <the value> (hint: <hint>)".
  bool fail(std::string_view expected, std::string_view hint = "") const;

 private:
  bool plain() const { return node_.kind == YamlNode::Kind::kScalar && !node_.quoted; }

  const YamlNode& node_;
  std::string file_;
  std::string key_;
  std::vector<std::string>& problems_;
};

// "file:line:col: key", or the flag alone: how a message about a value begins.
std::string message_prefix(const std::string& where, const std::string& key);

}  // namespace kvfuse::bench
