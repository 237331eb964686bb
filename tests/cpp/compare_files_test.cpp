// The files that are compared, damaged ones among them, and the command line.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "benchmark/compare_cli.h"
#include "benchmark/errors.h"
#include "csrc/model/model_file.h"
#include "tests/cpp/compare_fixture.h"

namespace kvfuse::bench {
namespace {

TEST_F(Compare, TheLastRecordOfAPointCounts) {
  const Comparison comparison =
      compare({latency(kSlow), latency(kFast, "v2"), latency(kFast)}, {latency(kFast)});
  ASSERT_EQ(comparison.rows.size(), 2U);
  EXPECT_EQ(comparison.rows[0].verdict, Verdict::kSame);
  ASSERT_EQ(comparison.notices.size(), 1U);
  EXPECT_NE(comparison.notices[0].find("the last record counts; 1 earlier ones are left out"),
            std::string::npos);
}

TEST_F(Compare, TheFirstRecordOfAPointCountsIfAsked) {
  write("old.jsonl", std::vector<json>{latency(kSlow), latency(kFast, "v2"), latency(kFast)});
  const Comparison comparison =
      compare_files(path("old.jsonl"), path("old.jsonl"), kDefaultThreshold, Dedup::kFirst);
  ASSERT_EQ(comparison.rows.size(), 2U);
  EXPECT_EQ(comparison.rows[0].points.before->values, latency(kSlow)["time_total_ms_samples"]);
  EXPECT_NE(comparison.notices.at(0).find("the first record counts; 1 later ones are left out"),
            std::string::npos);
}

TEST_F(Compare, SettingsThatTellPointsApartAreShown) {
  json eight = latency(kFast);
  eight["case"]["batch_size"] = 8;
  const Table table = comparison_table(compare({latency(kFast), eight}, {latency(kFast), eight}));
  EXPECT_EQ(table.rows[0][3], "batch_size=1");
  EXPECT_EQ(table.rows[1][3], "batch_size=8");
}

TEST_F(Compare, ForeignRecordsAndUnknownFieldsArePassedOver) {
  json rich = latency(kFast);
  rich["unknown"] = {{"field", json::array({1, 2})}};
  const Comparison comparison =
      compare({json::object(), {{"benchmark_name", 3}, {"case", {}}}, {{"case", nullptr}}, rich}, {rich});
  EXPECT_EQ(comparison.rows.size(), 1U);
  EXPECT_EQ(comparison.count(Verdict::kSame), 1U);
  EXPECT_NE(comparison.notices.at(0).find("passed over 3 records that name no point"), std::string::npos);
}

TEST_F(Compare, NanTokensAreRead) {
  std::string line = latency(kFast, "NaN \\\" -Infinity NaN").dump();
  line.insert(1, "\"a\":NaN,\"b\":[Infinity,-Infinity],");
  write("old.jsonl", line + "\n");
  const Comparison comparison = compare_files(path("old.jsonl"), path("old.jsonl"), kDefaultThreshold);
  ASSERT_EQ(comparison.count(Verdict::kSame), 1U);
  EXPECT_EQ(comparison.rows[0].points.before->version, "NaN \\\" -Infinity NaN");
  json record = latency(kFast);
  record.erase("time_total_ms_samples");
  line = record.dump();
  line.insert(1, "\"time_total_ms_samples\":[1,NaN,3],");
  write("old.jsonl", line + "\n");
  EXPECT_EQ(compare_files(path("old.jsonl"), path("old.jsonl"), 0.05).rows.at(0).notes.at(0),
            "old: time_total_ms_samples: expected positive numbers, got null");
}

TEST_F(Compare, DamagedLinesAreErrorsThatNameThem) {
  const std::string good = latency(kFast).dump() + "\n";
  for (const std::string& bad : Words{"garbage\n", "\n", "{\"a\": 1\n", "[]\n", "{\"a\": 1}{\"b\": 2}\n",
                                      "{\"a\": nan}\n", "{\"a\": \"\xff\"}\n", "{\"a\": NaNNaN}\n",
                                      "{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}\n",
                                      std::string(100, '\0') + "\n"}) {
    for (const std::string& rest : Words{good, ""})
      EXPECT_EQ(error_of(good + good + bad + rest), path("bad.jsonl") +
                                                        ":3: expected one JSON object, got a damaged line "
                                                        "(hint: repair or remove that line)")
          << bad;
  }
  EXPECT_NE(error_of(good + std::string((1 << 24) + (2 << 20), 'x'))
                .find(":2: expected one JSON object, got a line of more than 16 MiB"),
            std::string::npos);
}

TEST_F(Compare, ALastLineThatWasCutOffIsLeftOut) {
  const std::string good = latency(kFast).dump() + "\n";
  for (const std::size_t length : {std::size_t{1}, good.size() / 2, good.size() - 2}) {
    write("old.jsonl", good + good.substr(0, length));
    const Comparison comparison = compare_files(path("old.jsonl"), path("old.jsonl"), kDefaultThreshold);
    EXPECT_EQ(comparison.count(Verdict::kSame), 1U);
    ASSERT_EQ(comparison.notices.size(), 2U);
    EXPECT_NE(comparison.notices[0].find(":2: the last line was cut off"), std::string::npos);
  }
  write("old.jsonl", good.substr(0, good.size() - 1));  // whole, but for its newline
  EXPECT_TRUE(compare_files(path("old.jsonl"), path("old.jsonl"), kDefaultThreshold).notices.empty());
}

TEST_F(Compare, SchemaVersions) {
  EXPECT_EQ(error_of("{\"T\": 1}\n{\"schema_version\": 1}\n"), "accepted");
  for (const std::string& version : Words{"2", "18446744073709551615", "-1", "1.5", "\"1\"", "null"})
    EXPECT_EQ(error_of("{}\n{\"schema_version\": " + version + "}\n"),
              path("bad.jsonl") + ":2: schema_version: expected at most 1, got " + version +
                  " (hint: a newer version wrote this file; use that one to read it)");
}

TEST_F(Compare, PathsThatLeadToNoFile) {
  write("good.jsonl", std::vector<json>{latency(kFast)});
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  for (const std::string& bad : Words{path("none"), folder_.path(), path("pipe"), "/dev/zero", ""})
    EXPECT_THROW(compare_files(path("good.jsonl"), bad, kDefaultThreshold), ModelFileError) << bad;
  write("empty.jsonl", std::string());
  const Comparison comparison = compare_files(path("empty.jsonl"), path("empty.jsonl"), kDefaultThreshold);
  EXPECT_TRUE(comparison.rows.empty());
  EXPECT_NE(comparison.notices.at(0).find("holds no points"), std::string::npos);
  EXPECT_EQ(comparison_summary(comparison), "0 points");
}

// Resident memory of a process that compares a file of `records` records with itself, in MiB; -1 if it
// failed.
long peak_mib_of_comparison(const std::string& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    const Comparison comparison = compare_files(path, path, kDefaultThreshold);
    ::_exit(comparison.count(Verdict::kSame) == 100 ? 0 : 1);
  }
  int status = 0;
  struct rusage usage = {};
  if (::wait4(child, &status, 0, &usage) != child || status != 0) return -1;
  return usage.ru_maxrss / 1024;
}

TEST_F(Compare, MemoryDoesNotGrowWithTheFile) {
  {
    std::ofstream file(path("big.jsonl"), std::ios::binary);
    std::string lines;
    for (int T = 0; T < 100; ++T) {
      json record = latency(kFast, "v1", T);
      record["padding"] = std::string(1500, 'x');
      lines += record.dump() + "\n";
    }
    for (int repeats = 0; repeats < 300; ++repeats) file << lines;  // about 70 MB
  }
  ASSERT_GT(std::filesystem::file_size(path("big.jsonl")), std::uintmax_t{60} << 20);
  const long peak = peak_mib_of_comparison(path("big.jsonl"));
  EXPECT_GT(peak, 0);
  EXPECT_LT(peak, 50);
}

// --- The command line ---

CompareOptions parse(const Words& words) {
  std::vector<const char*> argv = {"bench_runner", "compare"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  EXPECT_TRUE(is_compare(static_cast<int>(argv.size()), argv.data()));
  return parse_compare_cli(static_cast<int>(argv.size()), argv.data());
}

TEST(CompareCli, Options) {
  const CompareOptions plain = parse({"a.jsonl", "b.jsonl"});
  EXPECT_EQ(plain.old_path, "a.jsonl");
  EXPECT_EQ(plain.new_path, "b.jsonl");
  EXPECT_DOUBLE_EQ(plain.threshold, kDefaultThreshold);
  EXPECT_EQ(plain.output, TableFormat::kTable);
  EXPECT_FALSE(plain.fail_if_slower);
  EXPECT_EQ(plain.dedup, Dedup::kLast);
  const CompareOptions all =
      parse({"--fail-if-slower", "a", "--threshold", "2.5", "b", "-o", "csv", "--dedup", "first"});
  EXPECT_EQ(all.old_path + all.new_path, "ab");
  EXPECT_DOUBLE_EQ(all.threshold, 0.025);
  EXPECT_EQ(all.output, TableFormat::kCsv);
  EXPECT_TRUE(all.fail_if_slower);
  EXPECT_EQ(all.dedup, Dedup::kFirst);
  const char* other[] = {"bench_runner", "latency", "compare"};
  EXPECT_FALSE(is_compare(3, other));
  EXPECT_FALSE(is_compare(1, other));
  for (const char* part : {"OLD NEW", "--threshold PERCENT", "Examples:", "Exit codes:", "incomparable"})
    EXPECT_NE(parse({"--help"}).help.find(part), std::string::npos) << part;
}

TEST(CompareCli, WrongCallsAreRefusedInOneLineEach) {
  const auto problems_of = [](const Words& words) -> Words {
    try {
      parse(words);
    } catch (const ConfigError& error) {
      return error.problems();
    }
    return {};
  };
  const std::string files = "compare: expected two results files, OLD and NEW, got ";
  const std::string hint = " (hint: see bench_runner compare --help)";
  EXPECT_EQ(problems_of({}), Words{files + "0" + hint});
  EXPECT_EQ(problems_of({"a"}), Words{files + "1" + hint});
  EXPECT_EQ(problems_of({"a", "b", "c"}), Words{files + "3" + hint});
  EXPECT_EQ(problems_of({"a", "b", "--treshold", "1"}),
            Words{"--treshold: expected a known option, got an unknown one (hint: did you mean "
                  "\"--threshold\"?)"});
  for (const std::string& bad : Words{"-1", "nan", "inf", "5%", "", "1e9", "five"})
    EXPECT_EQ(problems_of({"a", "b", "--threshold=" + bad}).size(), 1U) << bad;
  EXPECT_EQ(problems_of({"a", "b", "--threshold", "x", "-o", "xml", "--dedup", "best"}),
            (Words{"--threshold: expected percent in [0, 1000], got \"x\"",
                   "--dedup: expected first or last, got \"best\"",
                   "-o: expected one of table, md, csv, json, got \"xml\""}));
}

}  // namespace
}  // namespace kvfuse::bench
