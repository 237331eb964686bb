#include "benchmark/yaml_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>
#include <utility>

#include "benchmark/text.h"

namespace kvfuse::bench {
namespace {

using Kind = YamlNode::Kind;

constexpr std::size_t kMostProblems = 100;  // a binary file must not fill the terminal

std::string too_many_nodes() { return fmt::format("expected at most {} values, got more", kYamlMostNodes); }

// Ends the parse from inside an event; the problem has been reported.
struct StopParsing {};

// Builds the tree from yaml-cpp's events: its own nodes resolve aliases, and the first of two equal keys
// wins.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(const std::string& name, std::vector<std::string>& problems)
      : name_(name), problems_(problems) {}

  // What has been read; after a syntax error, the complete entries of the root.
  YamlNode take_root() { return open_.empty() ? std::move(root_) : std::move(open_.front().node); }
  bool has_document() const { return documents_ > 0; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) stop(mark, "expected one document, got a second one (hint: remove \"---\")");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    YamlNode node = make(Kind::kNull, mark);
    refuse_anchor(node, anchor);
    attach(std::move(node));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    YamlNode node = make(Kind::kRefused, mark);
    report(node, "expected a plain value, got an alias (hint: write the value out)");
    attach(std::move(node));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = make(Kind::kScalar, mark);
    node.quoted = tag == "!";
    node.text = value;
    refuse_anchor(node, anchor);
    refuse_tag(node, tag);
    attach(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(Kind::kSequence, mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(Kind::kMap, mark, tag, anchor);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    YamlNode node;
    bool refused = false;
    bool has_key = false;  // of a mapping: `key` waits for its value
    YamlKey key;
  };

  YamlNode make(Kind kind, const YAML::Mark& mark) {
    if (++nodes_ > kYamlMostNodes) stop(mark, too_many_nodes());
    return {.kind = kind, .line = mark.line + 1, .column = mark.column + 1};
  }

  [[noreturn]] void stop(const YAML::Mark& mark, const std::string& problem) {
    problems_.push_back(fmt::format("{}:{}:{}: {}", name_, mark.line + 1, mark.column + 1, problem));
    throw StopParsing{};
  }

  void report(YamlNode& node, const std::string& problem) {
    node.kind = Kind::kRefused;
    std::string key;
    for (const Open& open : open_)
      if (open.has_key) key += (key.empty() ? "" : ".") + printable(open.key.text);
    problems_.push_back(
        fmt::format("{}:{}:{}: {}{}", name_, node.line, node.column, key.empty() ? "" : key + ": ", problem));
  }

  void refuse_anchor(YamlNode& node, YAML::anchor_t anchor) {
    if (anchor != 0) report(node, "expected a plain value, got an anchor (hint: anchors are not supported)");
  }
  void refuse_tag(YamlNode& node, const std::string& tag) {
    if (tag != "?" && tag != "!" && !tag.empty())
      report(node, fmt::format("expected a plain value, got the tag {} (hint: tags are not supported)",
                               in_quotes(tag)));
  }

  void open(Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    YamlNode node = make(kind, mark);
    if (open_.size() >= kYamlMostDepth)
      stop(mark, fmt::format("expected at most {} levels, got more", kYamlMostDepth));
    refuse_anchor(node, anchor);
    refuse_tag(node, tag);
    const bool refused = node.kind == Kind::kRefused;
    node.kind = kind;  // stays a container until it is closed
    open_.push_back({.node = std::move(node), .refused = refused, .key = {}});
  }

  void close() {
    YamlNode node = std::move(open_.back().node);
    if (open_.back().refused) node.kind = Kind::kRefused;
    open_.pop_back();
    attach(std::move(node));
  }

  void attach(YamlNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == Kind::kSequence) {
      parent.node.items.push_back(std::move(node));
    } else if (parent.has_key) {
      finish_entry(parent, std::move(node));
    } else {
      start_entry(std::move(node));
    }
  }

  void start_entry(YamlNode node) {
    if (node.kind == Kind::kScalar && node.text.empty())
      report(node, "expected the name of a key, got an empty one");
    else if (node.kind != Kind::kScalar && node.kind != Kind::kRefused)
      report(node, "expected the name of a key, got something else (hint: write \"name: value\")");
    Open& parent = open_.back();
    parent.has_key = true;
    // A refused key is dropped with its value: an empty name marks it.
    std::string name = node.kind == Kind::kScalar ? std::move(node.text) : "";
    parent.key = {.text = std::move(name), .line = node.line, .column = node.column};
  }

  void finish_entry(Open& parent, YamlNode value) {
    YamlKey& key = parent.key;
    if (value.kind == Kind::kNull) value.line = key.line, value.column = key.column;
    std::vector<YamlKey>& keys = parent.node.keys;
    const auto same =
        std::find_if(keys.begin(), keys.end(), [&](const YamlKey& other) { return other.text == key.text; });
    if (same != keys.end()) {
      YamlNode at = {.line = key.line, .column = key.column};
      report(at,
             fmt::format("expected each key once, got it again (hint: first given in line {})", same->line));
    } else if (!key.text.empty()) {
      parent.node.items.push_back(std::move(value));
      keys.push_back(std::move(key));
    }
    parent.has_key = false;
  }

  const std::string& name_;
  std::vector<std::string>& problems_;
  std::vector<Open> open_;
  YamlNode root_;
  int documents_ = 0;
  std::size_t nodes_ = 0;
};

// What yaml-cpp would pass through or misread. The text is not parsed if anything is found.
void check_characters(const std::string& text, const std::string& name, std::vector<std::string>& problems) {
  const std::size_t before = problems.size();
  const std::size_t invalid = invalid_utf8(text);
  int line = 1;
  std::size_t line_start = 0;
  bool indentation = true;
  std::size_t brackets = 0;  // thousands of them keep yaml-cpp busy before its first event
  const auto report = [&](std::size_t at, const std::string& problem) {
    if (problems.size() - before < kMostProblems)
      problems.push_back(fmt::format("{}:{}:{}: {}", name, line, at - line_start + 1, problem));
  };
  for (std::size_t at = 0; at < text.size() && at < invalid; ++at) {
    const unsigned char c = static_cast<unsigned char>(text[at]);
    if (c == '\n') {
      ++line;
      line_start = at + 1;
      indentation = true;
    } else if (c == '\t') {
      if (indentation)
        report(at, "expected spaces for indentation, got a tab (hint: replace it with spaces)");
      indentation = false;
    } else if ((c < 0x20 && c != '\r') || c == 0x7F) {
      report(at,
             fmt::format("expected text, got the control character 0x{:02x} (hint: is it a YAML file?)", c));
    } else if (c != ' ') {
      indentation = false;
    }
    if ((c == '[' || c == '{') && ++brackets == kYamlMostNodes) report(at, too_many_nodes());
  }
  if (invalid != std::string::npos)
    report(invalid, fmt::format("expected UTF-8 text, got the byte 0x{:02x} (hint: is it a YAML file?)",
                                static_cast<unsigned char>(text[invalid])));
}

struct File {
  int descriptor;
  ~File() {
    if (descriptor >= 0) ::close(descriptor);
  }
};

std::string too_large(const std::string& name, std::size_t bytes) {
  return fmt::format("{}: expected a file of at most {} bytes, got {}", name, kYamlMostBytes, bytes);
}

}  // namespace

YamlNode read_yaml(const std::string& text, const std::string& name, std::vector<std::string>& problems) {
  if (text.size() > kYamlMostBytes) {
    problems.push_back(too_large(name, text.size()));
    return {.kind = Kind::kRefused};
  }
  const std::size_t before = problems.size();
  check_characters(text, name, problems);
  if (problems.size() > before) return {.kind = Kind::kRefused};

  TreeBuilder builder(name, problems);
  bool complete = false;
  // yaml-cpp notices an unclosed quote only if no line break ends the text.
  std::istringstream stream(text.substr(0, text.find_last_not_of(" \t\r\n") + 1));
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
    complete = true;
  } catch (const YAML::Exception& error) {
    problems.push_back(
        fmt::format("{}:{}:{}: expected valid YAML, got: {} (hint: check colons, brackets, quotes and "
                    "indentation)",
                    name, std::max(error.mark.line, 0) + 1, std::max(error.mark.column, 0) + 1, error.msg));
  } catch (const StopParsing&) {
  }
  YamlNode root = builder.take_root();
  const bool empty = complete && (!builder.has_document() || root.kind == Kind::kNull);
  if (complete && root.kind != Kind::kMap && root.kind != Kind::kRefused)
    problems.push_back(
        fmt::format("{}:{}:{}: expected \"key: value\" lines, got {} (hint: see configs/default.yaml)", name,
                    std::max(root.line, 1), std::max(root.column, 1),
                    empty                          ? "an empty file"
                    : root.kind == Kind::kSequence ? "a list"
                                                   : in_quotes(root.text)));
  if (!complete) root.kind = Kind::kRefused;
  return root;
}

YamlNode read_yaml_file(const std::string& path, std::vector<std::string>& problems) {
  const auto refuse = [&](const std::string& problem) {
    problems.push_back(problem);
    return YamlNode{.kind = Kind::kRefused};
  };
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const File file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat status = {};
  if (file.descriptor < 0 || ::fstat(file.descriptor, &status) != 0)
    return refuse(fmt::format("{}: expected a readable configuration file, got: {} (hint: check --config)",
                              path, std::strerror(errno)));
  if (!S_ISREG(status.st_mode))
    return refuse(fmt::format("{}: expected a configuration file, got {} (hint: check --config)", path,
                              S_ISDIR(status.st_mode) ? "a directory" : "a device or pipe"));
  if (static_cast<std::size_t>(status.st_size) > kYamlMostBytes)
    return refuse(too_large(path, static_cast<std::size_t>(status.st_size)));

  std::string text(kYamlMostBytes + 1, '\0');
  std::size_t length = 0;
  while (length < text.size()) {
    const ssize_t got = ::read(file.descriptor, text.data() + length, text.size() - length);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return refuse(fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
    if (got == 0) break;
    length += static_cast<std::size_t>(got);
  }
  text.resize(length);
  return read_yaml(text, path, problems);
}

}  // namespace kvfuse::bench
