#include "benchmark/record_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <vector>

#include "csrc/model/model_file.h"
#include "csrc/records/record.h"
#include "csrc/text/token_file.h"

namespace kvfuse::bench {
namespace {

// Not the ordered kind, which searches all keys of an object for each that it adds.
using Json = nlohmann::json;

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr std::size_t kMostLineBytes = std::size_t{1} << 24;  // what RecordLog writes at most
constexpr int kMostDepth = 64;

Json parse(std::string_view line) {
  struct TooDeep {};
  const auto check_depth = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMostDepth) throw TooDeep{};
    return true;
  };
  try {
    return Json::parse(line, check_depth, /*allow_exceptions=*/false);
  } catch (const TooDeep&) {
    return Json(Json::value_t::discarded);
  }
}

// The line with the numbers that JSON lacks replaced by null, outside its strings.
std::string without_nonfinite(std::string_view line) {
  constexpr std::array<std::string_view, 3> kTokens = {"-Infinity", "Infinity", "NaN"};
  std::string text;
  bool in_string = false;
  for (std::size_t at = 0; at < line.size();) {
    const char c = line[at];
    const std::string_view rest = line.substr(at);
    const auto token = std::find_if(kTokens.begin(), kTokens.end(),
                                    [&](std::string_view known) { return rest.starts_with(known); });
    if (!in_string && token != kTokens.end()) {
      text += "null";
      at += token->size();
      continue;
    }
    const std::size_t taken = in_string && c == '\\' && rest.size() > 1 ? 2 : 1;
    in_string = in_string != (c == '"');
    text += rest.substr(0, taken);
    at += taken;
  }
  return text;
}

std::optional<Json> parse_record(std::string_view line) {
  Json value = parse(line);
  if (value.is_discarded() && (line.find("NaN") != line.npos || line.find("Infinity") != line.npos))
    value = parse(without_nonfinite(line));
  if (!value.is_object()) return std::nullopt;
  return value;
}

class Reader {
 public:
  Reader(const std::filesystem::path& path, const std::function<void(const Json&)>& visit)
      : file_(path), visit_(visit) {}

  std::optional<std::string> read() {
    std::string pending;  // read, not yet visited
    std::vector<std::byte> chunk(std::min<std::uint64_t>(kChunkBytes, file_.size()));
    for (std::uint64_t at = 0; at < file_.size();) {
      const std::span<std::byte> part(chunk.data(), std::min<std::uint64_t>(chunk.size(), file_.size() - at));
      file_.read(at, part);
      at += part.size();
      pending.append(reinterpret_cast<const char*>(part.data()), part.size());
      visit_whole_lines(pending);
      if (pending.size() > kMostLineBytes) damaged("a line of more than 16 MiB");
    }
    if (pending.empty() || visit_line(pending)) return std::nullopt;
    return fmt::format("{}:{}: the last line was cut off and is left out", file_.path().string(), line_);
  }

 private:
  void visit_whole_lines(std::string& pending) {
    std::size_t begin = 0;
    for (std::size_t end; (end = pending.find('\n', begin)) != std::string::npos; begin = end + 1) {
      if (!visit_line(std::string_view(pending).substr(begin, end - begin))) damaged("a damaged line");
      ++line_;
    }
    pending.erase(0, begin);
  }

  // False if the line holds no JSON object.
  bool visit_line(std::string_view line) {
    const std::optional<Json> record = parse_record(line);
    if (!record) return false;
    check_schema(*record);
    visit_(*record);
    return true;
  }

  void check_schema(const Json& record) const {
    const auto version = record.find("schema_version");
    if (version == record.end()) return;
    // Compared as unsigned: as signed numbers, 2^64 - 1 would be -1.
    if (version->is_number_unsigned() && version->get<std::uint64_t>() <= kSchemaVersion) return;
    throw DataFileError(fmt::format(
        "{}:{}: schema_version: expected at most {}, got {} (hint: a newer version wrote this file; use "
        "that one to read it)",
        file_.path().string(), line_, kSchemaVersion,
        version->dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60)));
  }

  [[noreturn]] void damaged(std::string_view what) const {
    throw DataFileError(
        fmt::format("{}:{}: expected one JSON object, got {} (hint: repair or remove that line)",
                    file_.path().string(), line_, what));
  }

  RegularFile file_;
  const std::function<void(const Json&)>& visit_;
  std::int64_t line_ = 1;
};

}  // namespace

std::optional<std::string> read_records(const std::filesystem::path& path,
                                        const std::function<void(const Json&)>& visit) {
  return Reader(path, visit).read();
}

}  // namespace kvfuse::bench
