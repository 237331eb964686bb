// Predictions beside records of the runner.
#include "csrc/roofline/validation.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "csrc/roofline/predictor.h"
#include "tests/cpp/error_of.h"
#include "tests/cpp/roofline_fixture.h"

namespace kvfuse::roofline {
namespace {

using enum Precision;
using nlohmann::json;

// A latency record of a model whose passes all cost the same but for attention.
json latency_record(double measured_ms) {
  return {{"schema_version", 1},
          {"benchmark_name", "latency_vs_T"},
          {"status", "ok"},
          {"version", "v1"},
          {"use_cache", true},
          {"kv_cache_dtype", "model"},
          {"sharing_group", 1},
          {"dtype", "float32"},
          {"pretrained", "custom"},
          {"model_config",
           {{"n_layer", 2},
            {"n_head", 4},
            {"n_embd", 100},
            {"block_size", 1000},
            {"vocab_size", 100},
            {"bias", false}}},
          {"batch_size", 1},
          {"prompt_length", 10},
          {"T", 3},
          {"time_total_ms_median", measured_ms},
          {"read_bandwidth_bytes_per_s", 1e9},
          {"matmul_flops_per_s", 8e8},
          {"a field of a later runner", {1, 2}}};
}

std::string lines(const std::vector<json>& records) {
  std::string text;
  for (const json& record : records) text += record.dump() + "\n";
  return text;
}

TEST(Validation, PredictionBesideTheRecord) {
  const ModelShape model = gpt2_shape(2, 4, 100, 100, 1000, false);
  const Calibration calibration = tiny();
  const double predicted =
      Predictor(calibration).generation(model, true, 1, 10, 3, kFp32, {.precision = kFp32}).total_ms();
  const Validation got = validate(lines({latency_record(predicted / 1.1), latency_record(predicted / 0.8)}),
                                  "r.jsonl", &calibration);
  ASSERT_EQ(got.records.size(), 2U);
  EXPECT_EQ(got.machine, "a machine");
  EXPECT_EQ(got.records[0].line, 1);
  EXPECT_DOUBLE_EQ(got.records[0].predicted_ms, predicted);
  EXPECT_NEAR(got.records[0].error, 0.1, 1e-12);
  EXPECT_NEAR(got.records[1].error, -0.2, 1e-12);
  EXPECT_NEAR(*got.median_absolute_error, 0.15, 1e-12);
  EXPECT_NEAR(*got.largest_absolute_error, 0.2, 1e-12);
  EXPECT_EQ(got.above_roof, 0);
}

TEST(Validation, WithoutACalibrationTheRecordsOwnLimitsAreTheRoof) {
  // 2 layers of 12 x 100^2 weights, norms of 5 x 100 and 100 x 100 tied: 250,500 floats at 1 GB/s are 1.002
  // ms, K and V 1600 bytes a token. The prompt computes 2 x 10 x 240,000 FLOPs and 55 pairs x 800, and
  // 20,000: 4.864 MFLOP at 800 MFLOP/s are 6.08 ms.
  const double roof_ms = 6.08 + (1002000 + 11 * 1600) / 1e6 + (1002000 + 12 * 1600) / 1e6;
  const Validation got = validate(lines({latency_record(10), latency_record(8)}), "r.jsonl", nullptr);
  ASSERT_EQ(got.records.size(), 2U);
  EXPECT_NEAR(got.records[0].shortest_ms, roof_ms, 1e-9);
  EXPECT_EQ(got.records[0].predicted_ms, got.records[0].shortest_ms);
  EXPECT_FALSE(got.records[0].above_roof);
  EXPECT_TRUE(got.records[1].above_roof);  // 8 ms is less than possible
  EXPECT_EQ(got.above_roof, 1);
}

TEST(Validation, AStageIsOnePass) {
  json stage = latency_record(5);
  stage.update(
      {{"benchmark_name", "roofline"}, {"stage", "v1_decode"}, {"prompt_length", 99}, {"pass_tokens", 1}});
  stage.erase("T");
  const Calibration calibration = tiny();
  const Validation got = validate(lines({stage}), "r.jsonl", &calibration);
  const ModelShape model = gpt2_shape(2, 4, 100, 100, 1000, false);
  EXPECT_DOUBLE_EQ(got.records.at(0).predicted_ms,
                   Predictor(calibration).pass(model, {.past = 99}, kFp32, {.precision = kFp32}).total_ms());
}

TEST(Validation, SaysWhatItSkips) {
  const auto changed = [](const char* key, const json& value) {
    json record = latency_record(10);
    record[key] = value;
    return record;
  };
  const Validation got =
      validate(lines({changed("benchmark_name", "vram"), changed("status", "oom"), changed("T", 992),
                      changed("implementation_name", "nanogpt"), changed("dtype", "int3"),
                      changed("weight_dtype", "int8"), changed("read_bandwidth_bytes_per_s", nullptr)}) +
                   "\n",
               "r.jsonl", nullptr);
  EXPECT_TRUE(got.records.empty());
  EXPECT_FALSE(got.median_absolute_error.has_value());
  std::vector<std::string> reasons;
  for (const SkippedRecord& skipped : got.skipped) reasons.push_back(skipped.reason);
  EXPECT_EQ(reasons, (std::vector<std::string>{"the benchmark vram measures no time to predict",
                                               "its status is oom", "it outgrows the context of 1000 tokens",
                                               "it is of another implementation, nanogpt",
                                               "its dtype is int3", "its weights are kept in int8",
                                               "it carries no limits and there is no calibration"}));
}

TEST(Validation, NamesTheLineThatIsDamaged) {
  const std::string good = latency_record(10).dump() + "\n";
  const auto error = [&](const std::string& line) {
    return error_of([&] { validate(good + line, "r.jsonl", nullptr); });
  };
  EXPECT_NE(error("{\"half").find("r.jsonl:2: expected JSON"), std::string::npos);
  EXPECT_EQ(error("[]"), "r.jsonl:2: expected a record, an object");
  json record = latency_record(10);
  record["schema_version"] = 2;
  EXPECT_EQ(error(record.dump()), "r.jsonl:2: expected schema_version 1, got a newer one");
  record = latency_record(-1);
  EXPECT_EQ(error(record.dump()), "r.jsonl:2: expected \"time_total_ms_median\" to be a positive number");
  record = latency_record(10);
  record["model_config"]["n_head"] = 7;
  EXPECT_EQ(error(record.dump()),
            "r.jsonl:2: roofline: expected n_embd to be a multiple of n_head, got n_embd 100 and n_head 7");
  record = latency_record(10);
  record["model_config"]["block_size"] = 1 << 26;
  record["T"] = 1 << 20;
  EXPECT_EQ(error(record.dump()), "r.jsonl:2: roofline: expected 1 <= T <= 131072, got 1048576");
  record["T"] = 0;
  EXPECT_EQ(error(record.dump()), "r.jsonl:2: roofline: expected 1 <= T <= 131072, got 0");
  record.erase("model_config");
  EXPECT_EQ(error(record.dump()), "r.jsonl:2: expected the field \"model_config\", got none");
}

TEST(Validation, ReadsTheRunnersOwnRecords) {
  for (const char* name : {"1-default", "2-long", "3-batch8"}) {
    const std::string path = KVFUSE_RESULTS_DIR + std::string("/") + name + ".jsonl";
    std::ifstream file(path);
    ASSERT_TRUE(file) << path;
    std::stringstream text;
    text << file.rdbuf();
    const Validation got = validate(text.str(), path, nullptr);
    EXPECT_FALSE(got.records.empty());
    EXPECT_EQ(got.above_roof, 0);
    for (const json& record : {json::parse(text.str().substr(0, text.str().find('\n')))}) {
      EXPECT_NEAR(got.records[0].shortest_ms, record["shortest_ms"].get<double>(), 1e-6);
      EXPECT_EQ(got.records[0].measured_ms, record["time_total_ms_median"].get<double>());
    }
  }
}

}  // namespace
}  // namespace kvfuse::roofline
