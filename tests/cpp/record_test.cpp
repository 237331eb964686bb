// The results file keeps its promises when files are damaged, disks are full and writers are killed.
#include "csrc/records/record.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <set>

#include "tests/cpp/temporary_folder.h"

namespace kvfuse::bench {
namespace {

class Record : public ::testing::Test {
 protected:
  void write(const std::string& text) const { place_.write("results/log.jsonl", text); }
  static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static std::string error_of(const std::string& path) {
    try {
      RecordLog log(path);
    } catch (const ResourceError& error) {
      return error.what();
    }
    return "accepted";
  }

  const test::TemporaryFolder place_;
  const std::string folder_ = place_.path();
  const std::string path_ = folder_ + "/results/log.jsonl";
};

json case_of(int index) { return {{"version", "v1"}, {"T", index}}; }
json record_of(int index) { return make_record("latency_vs_T", case_of(index), Status::kOk); }

TEST_F(Record, RoundTrip) {
  json record = make_record("latency_vs_T", case_of(7), Status::kOk);
  record["samples_ms"] = {1.25, 2.5e-300, 3.0};
  record["name"] = "Zürich \"x\"\n<script>";
  {
    RecordLog log(path_);
    EXPECT_FALSE(log.done(case_of(7)));
    log.append(record);
    log.append(make_record("vram_vs_T", case_of(8), Status::kSkipped, "no device"));
    EXPECT_TRUE(log.done(case_of(7)));
  }
  RecordLog log(path_);
  std::vector<json> found;
  log.for_each([&](const json& entry) { found.push_back(entry); });
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0], record);
  EXPECT_EQ(found[1]["reason"], "no device");
  EXPECT_EQ(found[0]["schema_version"], 1);
  EXPECT_EQ(found[0]["run_id"].get<std::string>().size(), 16U);
  EXPECT_EQ(found[0]["time"].get<std::string>().size(), 20U);
  EXPECT_FALSE(found[0].contains("reason"));
  EXPECT_TRUE(log.notices().empty());
  EXPECT_TRUE(log.done(json{{"T", 7}, {"version", "v1"}}));  // the order of keys does not matter
  EXPECT_FALSE(log.done(json{{"T", 7}}));
}

TEST_F(Record, OnlyFinalRecordsAreDone) {
  RecordLog log(path_);
  const Status all[] = {Status::kOk, Status::kSkipped, Status::kOom, Status::kFailed, Status::kInterrupted};
  for (int i = 0; i < 5; ++i) {
    log.append(make_record("x", case_of(i), all[i]));
    EXPECT_EQ(log.done(case_of(i)), i < 3) << status_name(all[i]);
  }
}

TEST_F(Record, NonFiniteNumbersBecomeNullAndAreListed) {
  RecordLog log(path_);
  json record = record_of(1);
  record["perplexity"] = std::nan("");
  record["samples"] = {1.0, std::numeric_limits<double>::infinity()};
  log.append(record);
  log.for_each([](const json& entry) {
    EXPECT_TRUE(entry["perplexity"].is_null());
    EXPECT_EQ(entry["nonfinite"], (json{"/perplexity", "/samples/1"}));
  });
}

TEST_F(Record, TextThatIsNotUtf8IsReplacedAndDepthIsLimited) {
  RecordLog log(path_);
  json record = record_of(1);
  record["cpu"] = "bad \xff byte";
  log.append(record);
  log.for_each([](const json& entry) { EXPECT_EQ(entry["cpu"], "bad \xef\xbf\xbd byte"); });
  json deep = json::object();
  for (int i = 0; i < 100; ++i) deep = json{{"x", deep}};
  EXPECT_THROW(log.append(deep), std::invalid_argument);
  EXPECT_THROW(log.append(json::array()), std::invalid_argument);
}

TEST_F(Record, ATornTailIsMovedAside) {
  for (const std::string& tail :
       {std::string("{\"case\": {\"T\""), std::string("{\"a\": 1}"), std::string("garbage\n"),
        std::string("{\"a\": NaN}\n"), std::string("5\n"), std::string("\n"), std::string(4096, '\0'),
        std::string(1 << 20, '[') + "\n", std::string("{\"a\": \"\xff\"}\n")}) {
    std::filesystem::remove_all(folder_ + "/results");
    { RecordLog(path_).append(record_of(1)); }
    const std::string intact = read(path_);
    write(intact + tail);
    {
      RecordLog log(path_);
      ASSERT_EQ(log.notices().size(), 1U);
      EXPECT_NE(log.notices()[0].find("torn"), std::string::npos);
      EXPECT_TRUE(log.done(case_of(1)));
      EXPECT_EQ(read(path_), intact);
      log.append(record_of(2));
    }
    EXPECT_EQ(read(path_ + ".torn"), tail.ends_with('\n') ? tail : tail + "\n");
    EXPECT_TRUE(RecordLog(path_).done(case_of(2)));
  }
}

TEST_F(Record, DamageInTheMiddleIsAnErrorWithTheLine) {
  const std::string good = record_of(1).dump() + "\n";
  for (const std::string& bad :
       std::vector<std::string>{"garbage\n", "\n", "{\"a\": 1\n", "[]\n", "{\"a\": 1}{\"b\": 2}\n"}) {
    write(good + good + bad + good);
    EXPECT_NE(error_of(path_).find(path_ + ":3: expected one JSON object, got a damaged line"),
              std::string::npos)
        << error_of(path_);
    EXPECT_EQ(read(path_), good + good + bad + good);  // left as it was
  }
  write(good + "garbage\n{\"torn");
  EXPECT_NE(error_of(path_).find(":2: "), std::string::npos);
  write(good + std::string((1 << 24) + 100000, 'x'));
  EXPECT_NE(error_of(path_).find(":2: expected one JSON object, got a line of more than 16 MiB"),
            std::string::npos);
}

TEST_F(Record, SchemaVersions) {
  write("{\"T\": 1}\n{\"schema_version\": 1, \"unknown\": {\"field\": []}}\n");
  EXPECT_EQ(error_of(path_), "accepted");
  for (const std::string& version : std::vector<std::string>{"2", "\"1\"", "1.5", "null"}) {
    write("{\"schema_version\": " + version + "}\n");
    EXPECT_NE(error_of(path_).find(path_ + ":1: schema_version: expected at most 1, got " + version),
              std::string::npos)
        << error_of(path_);
  }
}

TEST_F(Record, ClearDropsEvenADamagedFile) {
  write("garbage\ngarbage\n");
  RecordLog log(path_, {.clear = true});
  log.append(record_of(1));
  EXPECT_EQ(read(path_).find("garbage"), std::string::npos);
}

TEST_F(Record, UnusablePathsAreRefusedAtOnce) {
  EXPECT_NE(error_of(folder_).find("Is a directory"), std::string::npos);
  write("");
  EXPECT_NE(error_of(path_ + "/below.jsonl").find("expected a folder"), std::string::npos);
  ASSERT_EQ(::mkfifo((folder_ + "/fifo").c_str(), 0600), 0);
  EXPECT_NE(error_of(folder_ + "/fifo").find("expected a regular file"), std::string::npos);
  EXPECT_NE(error_of("/dev/full").find("expected a regular file"), std::string::npos);
  EXPECT_NE(error_of("/proc/kvfuse/log.jsonl").find("/proc/kvfuse"), std::string::npos);
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere: the read-only file is not tried";
  ASSERT_EQ(::chmod(path_.c_str(), 0444), 0);
  EXPECT_NE(error_of(path_).find("Permission denied"), std::string::npos);
}

TEST_F(Record, ASecondWriterIsRefusedWithThePid) {
  int ready[2], quit[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(quit), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    RecordLog log(path_);
    char byte = 'r';
    const bool told = ::write(ready[1], &byte, 1) == 1 && ::read(quit[0], &byte, 1) == 1;
    ::_exit(told ? 0 : 1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_NE(error_of(path_).find("lock held by process " + std::to_string(child)), std::string::npos)
      << error_of(path_);
  ASSERT_EQ(::write(quit[1], &byte, 1), 1);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(error_of(path_), "accepted");
  for (const int end : {ready[0], ready[1], quit[0], quit[1]}) ::close(end);
}

// A limit on the file size makes a write short and then fail, as a full disk does.
TEST_F(Record, AFullDiskLeavesTheOldLinesIntact) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {4096, 4096};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(9);
    RecordLog log(path_);
    int written = 0;
    for (;; ++written) {
      try {
        log.append(record_of(written));
      } catch (const ResourceError& error) {
        const std::string text = error.what();
        if (text.find(path_) == std::string::npos || text.find("File too large") == std::string::npos)
          ::_exit(8);
        break;
      }
    }
    try {
      log.append(record_of(-1));  // fails again: the file does not grow by a torn line
      ::_exit(7);
    } catch (const ResourceError&) {
    }
    ::_exit(written >= 10 && written < 100 ? 0 : 6);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  ASSERT_EQ(WEXITSTATUS(status), 0);
  RecordLog log(path_);
  EXPECT_TRUE(log.notices().empty());
  int count = 0;
  log.for_each([&](const json& record) { EXPECT_EQ(record["case"], case_of(count++)); });
  EXPECT_GE(count, 10);
}

constexpr int kKills = 100;

// Measures what is missing of `cases` and announces each record once append has returned.
[[noreturn]] void write_missing(const std::string& path, int cases, int announce) {
  RecordLog log(path);
  for (int i = 0; i < cases; ++i) {
    if (log.done(case_of(i))) continue;
    json record = record_of(i);
    record["padding"] = std::string(static_cast<std::size_t>(i % 7) * 300, 'x');
    log.append(record);
    if (::write(announce, &i, sizeof i) != sizeof i) ::_exit(5);
  }
  ::_exit(0);
}

TEST_F(Record, KilledWritersLoseNothingAndResumeRepeatsNothing) {
  std::mt19937 random(42);
  std::set<int> announced;
  int repairs = 0;
  for (int run = 0; run <= kKills; ++run) {
    const bool last = run == kKills;
    const int cases = last ? *announced.rbegin() + 50 : std::numeric_limits<int>::max();
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) write_missing(path_, cases, ends[1]);
    ::close(ends[1]);
    int index = 0;
    const auto announcement = [&] { return ::read(ends[0], &index, sizeof index) == sizeof index; };
    const auto note = [&] { EXPECT_TRUE(announced.insert(index).second) << index << " was measured twice"; };
    if (!last) {  // after a few announcements, at a random moment
      for (unsigned wanted = random() % 8; wanted > 0 && announcement(); --wanted) note();
      ::usleep(random() % 400);
      ::kill(child, SIGKILL);
    }
    while (announcement()) note();
    ::close(ends[0]);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_EQ(status, last ? 0 : SIGKILL);
    RecordLog log(path_);
    repairs += static_cast<int>(log.notices().size());
    for (const int done : announced)
      EXPECT_TRUE(log.done(case_of(done))) << done << " was announced and lost";
  }
  EXPECT_LE(repairs, kKills);
  std::set<int> found;
  RecordLog(path_).for_each([&](const json& record) {
    EXPECT_TRUE(found.insert(record["case"]["T"].get<int>()).second) << record["case"] << " stands twice";
  });
  EXPECT_EQ(static_cast<int>(found.size()), *found.rbegin() + 1);
  EXPECT_GE(announced.size(), 50U);
}

}  // namespace
}  // namespace kvfuse::bench
