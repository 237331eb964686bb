// Reads a YAML file into a tree with line numbers; refuses what makes YAML ambiguous or dangerous.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace kvfuse::bench {

struct YamlKey {
  std::string text;
  int line = 0;
  int column = 0;
};

struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap, kRefused };

  Kind kind = Kind::kNull;  // kRefused: a problem with it has been reported already
  int line = 0;             // 1-based
  int column = 0;           // 1-based, in bytes
  bool quoted = false;      // a quoted scalar is text, whatever it looks like
  std::string text = {};
  std::vector<YamlNode> items = {};  // of a sequence, or the values of a mapping
  std::vector<YamlKey> keys = {};    // of a mapping: keys[i] names items[i]
};

constexpr std::size_t kYamlMostBytes = std::size_t{1} << 20;
constexpr std::size_t kYamlMostNodes = 10000;
constexpr std::size_t kYamlMostDepth = 64;

// The root mapping of the text. Problems are appended as "name:line:col: ..."; nothing is thrown for what the
// text contains. If it cannot be read to its end, the root is kRefused and holds the entries before the
// problem. Refused: more than one document, duplicate keys, anchors, aliases, tags, tab indentation, control
// characters, invalid UTF-8, and more than the limits above.
YamlNode read_yaml(const std::string& text, const std::string& name, std::vector<std::string>& problems);

// The same for a regular file, whose size is checked before it is read.
YamlNode read_yaml_file(const std::string& path, std::vector<std::string>& problems);

}  // namespace kvfuse::bench
