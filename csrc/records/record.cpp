#include "csrc/records/record.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <optional>
#include <random>
#include <stdexcept>
#include <utility>

namespace kvfuse {
namespace {

constexpr std::size_t kMostLineBytes = std::size_t{1} << 24;
constexpr int kMostDepth = 64;  // nlohmann::json prints nested values by recursion

[[noreturn]] void fail(const std::string& path, std::string_view expected, int error) {
  throw ResourceError(path + ": expected " + std::string(expected) + ", got: " + std::strerror(error));
}

// Repeats a system call that a signal interrupted.
template <typename Call>
auto retried(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

// 0, or the error number; a short write is continued, which tells why it was short.
int write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = retried([&] { return ::write(descriptor, text.data(), text.size()); });
    if (written < 0) return errno;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return 0;
}

std::int64_t size_of(int descriptor, const std::string& path) {
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0) fail(path, "a results file", errno);
  return status.st_size;
}

std::optional<json> parse_object(const std::string& line) {
  struct TooDeep {};
  try {
    json value = json::parse(
        line,
        [](int depth, json::parse_event_t, json&) {
          if (depth > kMostDepth) throw TooDeep{};
          return true;
        },
        /*allow_exceptions=*/false);
    if (value.is_object()) return value;
  } catch (const TooDeep&) {
  }
  return std::nullopt;
}

void check_schema(const json& record, const std::string& path, std::int64_t line) {
  const auto version = record.find("schema_version");
  if (version == record.end()) return;
  if (version->is_number_integer() && *version <= kSchemaVersion) return;
  throw ResourceError(path + ":" + std::to_string(line) + ": schema_version: expected at most " +
                      std::to_string(kSchemaVersion) + ", got " + version->dump().substr(0, 60) +
                      " (hint: a newer version wrote this file; choose another --log-file)");
}

std::string canonical(const json& case_key) {
  // nlohmann::json sorts the keys.
  return nlohmann::json(case_key).dump(-1, ' ', false, json::error_handler_t::replace);
}

// Makes numbers that JSON lacks null, and lists where they stood.
void replace_nonfinite(json& value, const std::string& at, int depth, json& found) {
  if (depth > kMostDepth) throw std::invalid_argument("record: expected at most 64 levels");
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    value = nullptr;
    found.push_back(at);
  } else if (value.is_structured()) {
    for (auto& [key, item] : value.items()) replace_nonfinite(item, at + "/" + key, depth + 1, found);
  }
}

bool is_final(const json& record) {
  const auto status = record.find("status");
  if (status == record.end() || !status->is_string()) return false;
  for (const Status last : {Status::kOk, Status::kSkipped, Status::kOom})
    if (*status == status_name(last)) return true;
  return false;
}

const std::string& run_id() {
  static const std::string id = [] {
    std::random_device random;
    std::array<char, 17> text = {};
    std::snprintf(text.data(), text.size(), "%08x%08x", random(), random());
    return std::string(text.data());
  }();
  return id;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  ::gmtime_r(&now, &parts);
  std::array<char, 32> text = {};
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

}  // namespace

std::string_view status_name(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kSkipped:
      return "skipped";
    case Status::kOom:
      return "oom";
    case Status::kFailed:
      return "failed";
    case Status::kInterrupted:
      return "interrupted";
  }
  return "unknown";
}

json make_record(std::string_view benchmark_name, const json& case_key, Status status,
                 std::string_view reason) {
  json record = {{"schema_version", kSchemaVersion},
                 {"run_id", run_id()},
                 {"time", utc_now()},
                 {"benchmark_name", benchmark_name},
                 {"status", status_name(status)}};
  if (!reason.empty()) record["reason"] = reason;
  record["case"] = case_key;
  return record;
}

RecordLog::RecordLog(std::string path, RecordLogOptions options) : path_(std::move(path)), options_(options) {
  open_file();
  try {
    lock();
    if (options_.clear && ::ftruncate(descriptor_, 0) != 0)
      fail(path_, "a results file that can be cleared", errno);
    const Extent extent = scan([this](const json& record) {
      if (is_final(record) && record.contains("case")) done_.insert(canonical(record["case"]));
    });
    if (extent.readable < extent.size) repair(extent);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

RecordLog::~RecordLog() { ::close(descriptor_); }

void RecordLog::open_file() {
  const std::filesystem::path folder = std::filesystem::absolute(path_).parent_path();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail(path_, "a folder " + folder.string() + " for the results file", error.value());
  // O_NONBLOCK: opening a FIFO must not wait for a reader.
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644);
  if (descriptor_ < 0) fail(path_, "a results file that can be written", errno);
  struct stat status = {};
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw ResourceError(path_ + ": expected a regular file for the results, got a device or pipe");
  }
  // A new file's name must be durable as well.
  const int folder_descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_descriptor < 0) return;
  if (options_.sync) ::fsync(folder_descriptor);
  ::close(folder_descriptor);
}

void RecordLog::lock() const {
  struct flock request = {};
  request.l_type = F_WRLCK;
  request.l_whence = SEEK_SET;
  // The holder may end between the two calls: then try again.
  for (;;) {
    if (::fcntl(descriptor_, F_SETLK, &request) == 0) return;
    if (errno == EINTR) continue;
    if (errno != EACCES && errno != EAGAIN) fail(path_, "a results file that can be locked", errno);
    struct flock holder = request;
    if (::fcntl(descriptor_, F_GETLK, &holder) != 0) fail(path_, "a results file that can be locked", errno);
    if (holder.l_type != F_UNLCK)
      throw ResourceError(path_ + ": expected to be the only writer, got a lock held by process " +
                          std::to_string(holder.l_pid) +
                          " (hint: wait for it, or choose another --log-file)");
  }
}

RecordLog::Extent RecordLog::scan(const std::function<void(const json&)>& visit) const {
  Extent extent{.readable = 0, .size = size_of(descriptor_, path_)};
  std::string pending;  // read, not yet visited
  std::vector<char> chunk(std::size_t{1} << 16);
  std::int64_t line = 1;
  const auto damaged = [&](std::string_view what) {
    throw ResourceError(path_ + ":" + std::to_string(line) + ": expected one JSON object, got " +
                        std::string(what) +
                        " (hint: repair or remove that line, or start anew with --clear-log)");
  };
  for (std::int64_t at = 0; at < extent.size;) {
    const ssize_t got = retried([&] { return ::pread(descriptor_, chunk.data(), chunk.size(), at); });
    if (got < 0) fail(path_, "a readable results file", errno);
    if (got == 0) break;
    at += got;
    pending.append(chunk.data(), static_cast<std::size_t>(got));
    std::size_t begin = 0;
    for (std::size_t end; (end = pending.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const std::optional<json> record = parse_object(pending.substr(begin, end - begin));
      if (!record) {
        const std::int64_t next_line = extent.readable + static_cast<std::int64_t>(end - begin) + 1;
        if (next_line < extent.size) damaged("a damaged line");
        return extent;
      }
      check_schema(*record, path_, line);
      visit(*record);
      extent.readable += static_cast<std::int64_t>(end - begin) + 1;
      ++line;
    }
    pending.erase(0, begin);
    if (pending.size() > kMostLineBytes) damaged("a line of more than 16 MiB");
  }
  return extent;
}

void RecordLog::repair(const Extent& extent) {
  std::string tail(static_cast<std::size_t>(extent.size - extent.readable), '\0');
  const ssize_t got =
      retried([&] { return ::pread(descriptor_, tail.data(), tail.size(), extent.readable); });
  if (got < 0) fail(path_, "a readable results file", errno);
  if (!tail.ends_with('\n')) tail += '\n';

  const std::string torn_path = path_ + ".torn";
  const int torn = ::open(torn_path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644);
  if (torn < 0) fail(torn_path, "a file for the torn last line", errno);
  try {
    if (const int error = write_all(torn, tail); error != 0)
      fail(torn_path, "room for the torn last line", error);
    sync_file(torn, torn_path);
  } catch (...) {
    ::close(torn);
    throw;
  }
  ::close(torn);
  if (::ftruncate(descriptor_, extent.readable) != 0)
    fail(path_, "a results file that can be repaired", errno);
  sync_file(descriptor_, path_);
  notices_.push_back(path_ + ": the last line was torn; moved " + std::to_string(got) + " bytes to " +
                     torn_path);
}

void RecordLog::sync_file(int descriptor, const std::string& path) const {
  if (options_.sync && retried([&] { return ::fsync(descriptor); }) != 0) fail(path, "a durable file", errno);
}

void RecordLog::append(json record) {
  json nonfinite = json::array();
  replace_nonfinite(record, "", 1, nonfinite);
  if (!nonfinite.empty()) record["nonfinite"] = std::move(nonfinite);
  const std::string line = record.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  if (!record.is_object() || line.size() > kMostLineBytes)
    throw std::invalid_argument("record: expected a JSON object of at most 16 MiB");

  const std::int64_t before = size_of(descriptor_, path_);
  try {
    if (const int error = write_all(descriptor_, line); error != 0) fail(path_, "room for a record", error);
    sync_file(descriptor_, path_);
  } catch (const ResourceError& error) {
    if (::ftruncate(descriptor_, before) == 0) throw;
    throw ResourceError(std::string(error.what()) + "; its last line may be torn");
  }
  if (is_final(record) && record.contains("case")) done_.insert(canonical(record["case"]));
}

bool RecordLog::done(const json& case_key) const { return done_.contains(canonical(case_key)); }

void RecordLog::for_each(const std::function<void(const json&)>& visit) const { scan(visit); }

}  // namespace kvfuse
