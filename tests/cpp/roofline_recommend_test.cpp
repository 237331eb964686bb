// Strategies, what is recommended and why, and the published table beside full accounting.
#include "csrc/roofline/recommend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "csrc/roofline/published.h"
#include "tests/cpp/error_of.h"

namespace kvfuse::roofline {
namespace {

using enum Precision;

const Hardware& vendor(const char* name) { return HardwareRegistry::builtin().find(name); }
const Hardware& gb10() { return HardwareRegistry::builtin().find("gb10", Profile::kReference); }

RecommendRequest request(std::int64_t seq_len = 4096, Phase phase = Phase::kDecode) {
  RecommendRequest result;
  result.model = published_model();
  result.phase = phase;
  result.seq_len = seq_len;
  return result;
}

TEST(Strategies, FormatsByOperator) {
  struct Case {
    const char* strategy;
    Precision attention, ffn, products, kv;
    double loss_pct;
  };
  const Case cases[] = {{"fp16_baseline", kFp16, kFp16, kFp16, kFp16, 0},
                        {"fp8_balanced", kFp8, kFp8, kFp8, kFp8, 1},
                        {"int4_max_speed", kInt4, kInt4, kFp8, kFp8, 5},
                        {"nvfp4_blackwell", kNvfp4, kNvfp4, kFp8, kFp8, 1},
                        {"nvfp4_long_context", kNvfp4, kNvfp4, kFp8, kNvfp4, 1},
                        {"quality_first", kFp16, kFp8, kFp16, kFp16, 1}};
  ASSERT_EQ(mixed_precisions().size(), std::size(cases));
  for (const Case& c : cases) {
    SCOPED_TRACE(c.strategy);
    const MixedPrecision& got = find_mixed_precision(c.strategy);
    for (const Op op : {Op::kQProj, Op::kKProj, Op::kVProj, Op::kOProj})
      EXPECT_EQ(got.precisions.at(op), c.attention);
    for (const Op op : {Op::kFfnGate, Op::kFfnUp, Op::kFfnDown}) EXPECT_EQ(got.precisions.at(op), c.ffn);
    for (const Op op : {Op::kAttnQk, Op::kAttnAv}) EXPECT_EQ(got.precisions.at(op), c.products);
    for (const Op op : {Op::kNorm, Op::kAttnSoftmax, Op::kResidual, Op::kFfnAct, Op::kEmbedding,
                        Op::kPosition, Op::kLmHead})
      EXPECT_EQ(got.precisions.at(op), kFp16);
    EXPECT_EQ(got.precisions.kv().precision, c.kv);
    EXPECT_EQ(got.quoted_loss_pct(), c.loss_pct);
  }
  EXPECT_EQ(find_mixed_precision("nvfp4_long_context").precisions.kv_recent_window, 256);
  EXPECT_NE(error_of([] { find_mixed_precision("fp8_balance"); }).find("did you mean fp8_balanced?"),
            std::string::npos);
}

TEST(Strategies, WhatAMachineDoesNotComputeIn) {
  EXPECT_EQ(find_mixed_precision("nvfp4_blackwell").not_native(vendor("b200")), std::vector<Precision>{});
  EXPECT_EQ(find_mixed_precision("nvfp4_blackwell").not_native(vendor("h100")),
            std::vector<Precision>{kNvfp4});
  EXPECT_EQ(find_mixed_precision("int4_max_speed").not_native(vendor("b200")), std::vector<Precision>{kInt4});
  const std::vector<Precision> on_a100 = find_mixed_precision("nvfp4_blackwell").not_native(vendor("a100"));
  EXPECT_EQ(on_a100, (std::vector<Precision>{kNvfp4, kFp8}));
  EXPECT_EQ(find_mixed_precision("fp16_baseline").not_native(vendor("a100")), std::vector<Precision>{});
}

TEST(Recommend, ThePublishedAnswer) {
  const Recommendation got = recommend(gb10(), request());
  const PublishedRecommendation published;
  EXPECT_EQ(got.strategy_name, published.strategy_name);
  EXPECT_EQ(got.attention, published.attention);
  EXPECT_EQ(got.setting, "decode");
  // Full accounting: 50.51 ms to 14.62 ms, not the published 2.59.
  EXPECT_NEAR(got.predicted_speedup, 3.45, 0.02);
  EXPECT_NEAR(got.memory_saving, 0.71, 0.01);
  EXPECT_EQ(got.bottleneck, Bound::kMemory);
  EXPECT_EQ(got.quoted_loss_pct, 1);
  EXPECT_GE(got.reasons.size(), 6U);
}

struct Answer {
  const char* hardware;
  std::int64_t seq_len;
  Phase phase;
  const char* strategy;
  const char* attention;
  const char* setting;
};

TEST(Recommend, Answers) {
  const Answer answers[] = {
      {"gb10", 4096, Phase::kDecode, "nvfp4_blackwell", "FA3", "decode"},
      {"gb10", 32768, Phase::kDecode, "nvfp4_long_context", "FA3", "long_context"},
      {"b200", 4096, Phase::kAuto, "nvfp4_blackwell", "FA3", "decode"},
      {"b200", 8192, Phase::kPrefill, "nvfp4_blackwell", "FA4", "prefill"},
      {"h100", 4096, Phase::kDecode, "fp8_balanced", "FA3", "decode"},
      {"h200", 32768, Phase::kDecode, "fp8_balanced", "FA3", "long_context"},
      {"a100", 4096, Phase::kDecode, "fp16_baseline", "FA2", "decode"},
      {"a100", 4096, Phase::kPrefill, "fp16_baseline", "FA2", "prefill"},
      {"rtx4090", 4096, Phase::kDecode, "fp8_balanced", "FA3", "decode"},
      {"a6000", 4096, Phase::kDecode, "fp16_baseline", "FA2", "decode"},
  };
  for (const Answer& answer : answers) {
    SCOPED_TRACE(std::string(answer.hardware) + " " + std::to_string(answer.seq_len));
    const Recommendation got = recommend(vendor(answer.hardware), request(answer.seq_len, answer.phase));
    EXPECT_EQ(got.strategy_name, answer.strategy);
    EXPECT_EQ(got.attention, answer.attention);
    EXPECT_EQ(got.setting, answer.setting);
  }
}

TEST(Recommend, TheQualityLimitDecides) {
  RecommendRequest strict = request();
  strict.max_quality_loss_pct = 0;
  EXPECT_EQ(recommend(gb10(), strict).strategy_name, "fp16_baseline");
  RecommendRequest loose = request();
  loose.max_quality_loss_pct = 5;
  EXPECT_EQ(recommend(gb10(), loose).strategy_name, "int4_max_speed");
}

TEST(Recommend, FormatsForStorageOnlyIfAllowed) {
  RecommendRequest storage = request();
  storage.allow_storage_only = true;
  const Recommendation got = recommend(vendor("h100"), storage);
  EXPECT_EQ(got.strategy_name, "nvfp4_blackwell");
  EXPECT_TRUE(got.prediction.operators[index_of(Op::kFfnUp)].storage_only);
  EXPECT_EQ(got.prediction.operators[index_of(Op::kFfnUp)].computed_in, kFp16);
}

TEST(Recommend, SaysWhenTheSpeedUpAskedForIsOutOfReach) {
  RecommendRequest wish = request();
  wish.min_speedup = 3;
  EXPECT_TRUE(recommend(gb10(), wish).meets_min_speedup);
  wish.min_speedup = 10;
  const Recommendation got = recommend(gb10(), wish);
  EXPECT_FALSE(got.meets_min_speedup);
  EXPECT_EQ(got.reasons.back(), "No admitted strategy reaches the speed-up of 10 asked for.");
}

TEST(Recommend, EveryReasonHoldsAFigureAndEveryRefusalAReason) {
  const Recommendation got = recommend(vendor("h100"), request());
  for (const std::string& reason : got.reasons) {
    EXPECT_NE(reason.find_first_of("0123456789"), std::string::npos) << reason;
    EXPECT_EQ(reason.back(), '.') << reason;
  }
  ASSERT_EQ(got.candidates.size(), 6U);
  for (const Candidate& candidate : got.candidates) EXPECT_EQ(candidate.admitted, candidate.refusal.empty());
  EXPECT_EQ(got.candidates[3].refusal, "h100 does not compute in nvfp4");
  EXPECT_EQ(got.candidates[2].refusal, "its formats are quoted to lose up to 5 %, more than the 1 % allowed");
}

void expect_fastest(const Recommendation& got) {
  for (const Candidate& candidate : got.candidates) {
    if (!candidate.admitted) continue;
    EXPECT_LE(got.predicted_time_ms, candidate.time_ms);
  }
  EXPECT_GE(got.predicted_speedup, 1);
  const AttentionKernel chosen = parse_attention(got.attention);
  for (const AttentionPrediction& one : got.attentions)
    for (const AttentionPrediction& other : got.attentions) {
      if (one.kernel != chosen) continue;
      EXPECT_LE(one.time_ms, other.time_ms);
    }
}

TEST(Recommend, IsTheFastestOfWhatIsAdmitted) {
  for (const Hardware& hardware : HardwareRegistry::builtin().all())
    for (const ModelShape& model : llama_presets())
      for (const std::int64_t seq_len : {128, 4096, 131072})
        for (const Phase phase : {Phase::kDecode, Phase::kPrefill}) {
          RecommendRequest any = request(seq_len, phase);
          any.model = model;
          any.batch = 4;
          expect_fastest(recommend(hardware, any));
        }
}

TEST(Recommend, OnACpuOurDecodeAttention) {
  Hardware cpu{.name = "cpu",
               .title = "a CPU",
               .kind = "cpu",
               .profile = Profile::kUser,
               .aliases = {},
               .bandwidth_gb_s = {34, "measured"},
               .peak_tflop_s = {{kFp32, {0.2, "measured"}}},
               .memory_gb = {},
               .l2_mb = {},
               .multiprocessors = {},
               .note = ""};
  EXPECT_EQ(recommend(cpu, request()).attention, "kvfuse-int8");
  EXPECT_EQ(recommend(cpu, request(512, Phase::kPrefill)).attention, "standard");
}

TEST(Recommend, RefusesWhatCannotBe) {
  EXPECT_EQ(error_of([] { recommend(gb10(), request(0)); }),
            "roofline: expected 1 <= seq_len <= 67108864, got 0");
  RecommendRequest bad = request();
  bad.max_quality_loss_pct = std::nan("");
  EXPECT_EQ(error_of([&] { recommend(gb10(), bad); }),
            "roofline: expected max_quality_loss_pct to be a finite number of at least 0, got nan");
  bad = request();
  bad.min_speedup = -2;
  EXPECT_EQ(error_of([&] { recommend(gb10(), bad); }),
            "roofline: expected min_speedup to be a positive finite number, got -2");
  bad = request();
  bad.model.n_kv_head = 7;
  EXPECT_EQ(error_of([&] { recommend(gb10(), bad); }),
            "roofline: expected n_head to be a multiple of n_kv_head, got n_head 32 and n_kv_head 7");
  EXPECT_EQ(parse_phase("Decode"), Phase::kDecode);
  EXPECT_NE(error_of([] { parse_phase("decoding"); }).find("did you mean decode?"), std::string::npos);
}

// --- The published table ---

struct Row {
  const char* name;
  double as_published;
  double complete;  // NaN: nothing to set beside it
  double compat;    // likewise
  double tolerance;
};

TEST(Published, TableAndFullAccounting) {
  const double none = std::nan("");
  // Full accounting by hand: (weights + K and V) / 287 GB/s; cache bytes 131072 a token in FP16, x 9/32 in
  // NVFP4.
  const Row rows[] = {
      {"fp16_baseline at 4096: time", 45.8, 50.51, 45.83, 0.01},
      {"fp16_baseline at 32768: time", 91.6, 63.60, 91.66, 0.01},
      {"fp8_balanced at 4096: time", 23.7, 25.256, none, 0.003},
      {"fp8_balanced at 4096: speed-up", 1.93, 2.0, none, 0.001},
      {"fp8_balanced at 4096: memory saving", 50, 50, none, 0.01},
      {"nvfp4_blackwell at 4096: time", 17.7, 14.619, none, 0.003},
      {"nvfp4_blackwell at 4096: speed-up", 2.59, 3.455, none, 0.002},
      {"nvfp4_blackwell at 4096: memory saving", 72, 71.05, none, 0.02},
      {"nvfp4_long_context at 32768: time", 37.4, 17.974, none, 0.01},
      {"nvfp4_long_context at 32768: memory saving", 71, 71.7, none, 0.05},
      {"FP16 at 32768", 4096, 4096, none, 0},
      {"NVFP4 at 32768", 1175, 1175, none, 0},
      {"NVFP4 at 32768: saving", 71, 71.3, none, 0.02},
      {"FA1: speed-up over FA1", 1, 1, 1, 1e-12},
      {"FA2: speed-up over FA1", 1.15, 0.615 / 0.325, 33.8 / 29.4, 1e-9},
      {"FA3: speed-up over FA1", 2.20, 2 * (1200 / 1978.9) / 0.325, 33.8 / 15.4, 1e-9},
      {"FA4: speed-up over FA1", 2.20, 2 * 0.71 / 0.325, 33.8 / 15.4, 1e-9},
      {"context from which K and V outweigh the weights", 1600, 106496, 1664, 0},
      {"FFN's share of the linear weights", 66.7, 80.77, none, 0.005},
      {"GB10 in fp16", 216, 216.03, none, 0.005},
      {"GB10 in fp8", 432, 432.06, none, 0.005},
      {"GB10 in nvfp4", 3484, 3484.32, none, 0.005},
      {"GB10 in int4", 864, 864.11, none, 0.005},
  };
  std::map<std::string, PublishedRow> table;
  for (const PublishedRow& row : published_results()) table[row.name] = row;
  for (const Row& want : rows) {
    SCOPED_TRACE(want.name);
    ASSERT_TRUE(table.contains(want.name));
    const PublishedRow& got = table[want.name];
    EXPECT_EQ(got.as_published, want.as_published);
    ASSERT_EQ(got.complete.has_value(), !std::isnan(want.complete));
    EXPECT_NEAR(*got.complete, want.complete, want.tolerance);
    ASSERT_EQ(got.compat.has_value(), !std::isnan(want.compat));
    if (got.compat) {
      EXPECT_NEAR(*got.compat, want.compat, want.tolerance);
    }
  }
}

TEST(Published, TheCompatFormulaGivesThePublishedPair) {
  EXPECT_NEAR(published_compat_ms(4096), 45.8, 0.1);
  EXPECT_NEAR(published_compat_ms(32768), 91.6, 0.1);
}

TEST(Published, ARowThatDiffersSaysWhy) {
  for (const PublishedRow& row : published_results())
    if (row.complete && std::fabs(*row.complete - row.as_published) > 0.02 * row.as_published) {
      EXPECT_FALSE(row.note.empty()) << row.name;
    }
}

}  // namespace
}  // namespace kvfuse::roofline
