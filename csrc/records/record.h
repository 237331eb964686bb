// The results file: one JSON object a line, durable before it is announced, written by one runner at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace kvfuse {

using json = nlohmann::ordered_json;

// The machine refused: disk full, no permission, results file held by another runner.
class ResourceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int kSchemaVersion = 1;

enum class Status { kOk, kSkipped, kOom, kFailed, kInterrupted };
std::string_view status_name(Status status);

// The fields every record begins with: schema_version, run_id (one per process), time (UTC), benchmark_name,
// status, reason (unless empty) and case, the object that says what was measured.
json make_record(std::string_view benchmark_name, const json& case_key, Status status,
                 std::string_view reason = "");

struct RecordLogOptions {
  bool sync = true;    // a record survives a power cut, not only the end of the process
  bool clear = false;  // drop all records, readable or not
};

class RecordLog {
 public:
  // Opens the file (and makes its folder), takes the lock, reads the records and moves a torn last line to
  // "<path>.torn". Throws ResourceError if the file cannot be used, is held by another runner, or is damaged.
  explicit RecordLog(std::string path, RecordLogOptions options = {});
  ~RecordLog();
  RecordLog(const RecordLog&) = delete;
  RecordLog& operator=(const RecordLog&) = delete;

  // Returns when the line is on disk. On failure the file is as long as before, and ResourceError is thrown.
  // Numbers that are not finite are written as null and listed in the field "nonfinite".
  void append(json record);

  // Whether a record with this case and a final status (ok, skipped, oom) exists.
  bool done(const json& case_key) const;

  // Every record in order, read from the open file: opening it a second time and closing it would drop the
  // lock.
  void for_each(const std::function<void(const json&)>& visit) const;

  // What the caller should tell the user: a repaired tail.
  const std::vector<std::string>& notices() const { return notices_; }
  const std::string& path() const { return path_; }

 private:
  // Where the readable lines end: before `size` if the last line is torn.
  struct Extent {
    std::int64_t readable = 0;
    std::int64_t size = 0;
  };

  void open_file();
  void lock() const;
  Extent scan(const std::function<void(const json&)>& visit) const;
  void repair(const Extent& extent);
  void sync_file(int descriptor, const std::string& path) const;

  std::string path_;
  RecordLogOptions options_;
  int descriptor_ = -1;
  std::unordered_set<std::string> done_;  // canonical text of each finished case
  std::vector<std::string> notices_;
};

}  // namespace kvfuse
