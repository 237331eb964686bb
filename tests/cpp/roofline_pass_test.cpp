// Whole models on the roofline: published figures, figures worked out by hand, and what must hold of any
// pass.
#include "csrc/roofline/pass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "csrc/roofline/published.h"
#include "csrc/roofline/strategies.h"
#include "csrc/roofline/sweep.h"
#include "tests/cpp/error_of.h"

namespace kvfuse::roofline {
namespace {

const Hardware& vendor(const char* name) { return HardwareRegistry::builtin().find(name); }
const Hardware& gb10() { return HardwareRegistry::builtin().find("gb10", Profile::kReference); }

TEST(Pass, DecodeReadsEveryWeightAndEveryCachedTokenOnce) {
  struct Case {
    std::int64_t seen;
    const char* strategy;
    double weight_gb, cache_gb, time_ms;
  };
  // Weights of 6,979,321,856 elements and norms of 65 x 4096 in FP16; a token takes 131072 bytes in FP16. Of
  // K and V one token is written, too. Times at 287 GB/s.
  constexpr double kNorms = 65 * 4096 * 2 / 1e9;
  const Case cases[] = {
      {4096, "fp16_baseline", 13.958643712 + kNorms, 4097 * 131072 / 1e9, 50.510},
      {32768, "fp16_baseline", 13.958643712 + kNorms, 32769 * 131072.0 / 1e9, 63.604},
      {4096, "fp8_balanced", 6.979321856 + kNorms, 4097 * 65536 / 1e9, 25.256},
      {4096, "nvfp4_blackwell", 6.979321856 * 0.5625 + kNorms, 4097 * 65536 / 1e9, 14.619},
      {4096, "int4_max_speed", 6.979321856 * 0.515625 + kNorms, 4097 * 65536 / 1e9, 13.479},
      {4096, "quality_first", 1.342177280 * 2 + 5.637144576 + kNorms, 4097 * 131072 / 1e9, 30.868},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.strategy);
    const PassPrediction got =
        predict_pass(gb10(), published_model(), {.past = c.seen - 1},
                     find_mixed_precision(c.strategy).precisions, {.count_activations = false});
    EXPECT_NEAR(got.weight_bytes / 1e9, c.weight_gb, 1e-9);
    EXPECT_NEAR(got.cache_bytes / 1e9, c.cache_gb, 1e-9);
    EXPECT_NEAR(got.time_ms, c.time_ms, 0.003);
    EXPECT_EQ(got.bound, Bound::kMemory);
  }
}

TEST(Pass, PrefillOfGpt2Medium) {
  // 24 layers of 12 H^2 weights over 512 tokens: 309.2 GFLOP; causal attention 512 * 513 / 2 pairs; one row
  // of logits: 0.103 GFLOP.
  const ModelShape model = gpt2_shape(24, 16, 1024, 50257, 1024);
  const PassPrediction got = predict_pass(vendor("a6000"), model, {.tokens = 512}, all_in(Precision::kFp16));
  double linear = 0;
  for (const Op op : {Op::kQProj, Op::kKProj, Op::kVProj, Op::kOProj, Op::kFfnUp, Op::kFfnDown})
    linear += product_flops(op, model, got.pass);
  const double attention =
      product_flops(Op::kAttnQk, model, got.pass) + product_flops(Op::kAttnAv, model, got.pass);
  EXPECT_NEAR(linear / 1e9, 309.2, 0.05);
  EXPECT_NEAR(attention / 1e9, 12.9, 0.05);
  EXPECT_NEAR(product_flops(Op::kLmHead, model, got.pass) / 1e9, 0.103, 0.0005);
  EXPECT_NEAR(got.flops / 1e9, 322.1, 4);  // and what is done element by element
  EXPECT_EQ(got.bound, Bound::kMemory);    // what operators hand over is more than weights and cache
  EXPECT_EQ(predict_pass(vendor("a6000"), model, {.tokens = 512}, all_in(Precision::kFp16),
                         {.count_activations = false})
                .bound,
            Bound::kCompute);
}

TEST(Pass, DecodeOfGpt2MediumReadsWeightsAndCache) {
  // 353,774,592 parameters without positions and 512 tokens of 98304 bytes
  ModelShape model = gpt2_shape(24, 16, 1024, 50257, 1024);
  const PassPrediction got = predict_pass(vendor("a6000"), model, {.past = 511}, all_in(Precision::kFp16),
                                          {.count_activations = false});
  const double looked_up = 2 * 1024 * 2;  // a row of the embedding and one of the positions
  EXPECT_EQ(got.weight_bytes, 353774592.0 * 2 + looked_up);
  EXPECT_EQ(got.cache_bytes, (512 + 1) * 98304.0);
  EXPECT_NEAR((got.weight_bytes + got.cache_bytes) / 757880832, 1, 2e-4);
}

TEST(Pass, ResidentWeights) {
  EXPECT_EQ(resident_weight_bytes(published_model(), all_in(Precision::kFp16)),
            13958643712.0 + 65 * 4096 * 2);
  // Llama-3 8B has 8,030,261,248 parameters.
  EXPECT_EQ(resident_weight_bytes(llama_preset("llama-3-8b"), all_in(Precision::kFp16)), 2 * 8030261248.0);
  EXPECT_EQ(resident_weight_bytes(gpt2_shape(12, 12, 768, 50257, 1024), all_in(Precision::kFp32)),
            4 * 124439808.0);
}

TEST(Pass, MostOperatorsOfADecodeStepDoFewFlopsAByte) {
  const PassPrediction step =
      predict_pass(gb10(), published_model(), {.past = 4095}, all_in(Precision::kFp16));
  const IntensityCount count = count_below(step, 10);
  EXPECT_EQ(count.below, count.all);
  // Not embedding and head, which this model has not, nor softmax, which moves nothing.
  EXPECT_EQ(count_below(step, 1e30).all, 14);
}

TEST(Pass, GenerationIsAPrefillAndSteps) {
  const ModelShape model = llama_preset("tinyllama-1.1b");
  const OperatorPrecisions fp16 = all_in(Precision::kFp16);
  const GenerationPrediction got = predict_generation(vendor("h100"), model, 2, 100, 4, fp16);
  double total = predict_pass(vendor("h100"), model, {.batch = 2, .tokens = 100}, fp16).time_ms;
  EXPECT_EQ(got.prefill_ms, total);
  for (const std::int64_t past : {100, 101, 102})
    total += predict_pass(vendor("h100"), model, {.batch = 2, .past = past}, fp16).time_ms;
  EXPECT_DOUBLE_EQ(got.total_ms, total);
  EXPECT_DOUBLE_EQ(got.tokens_per_s, 8 / total * 1e3);
  // 22 layers of 4 heads of 64, K and V, in FP16, for 103 tokens of 2 sequences
  EXPECT_EQ(got.kv_cache_bytes, 2.0 * 103 * 22 * 2 * 4 * 64 * 2);
  EXPECT_TRUE(got.fits_memory);
  EXPECT_FALSE(predict_generation(vendor("h100"), llama_preset("llama-3-70b"), 1, 1, 1, fp16).fits_memory);
}

// --- What must hold of any pass ---

class PassProperties : public ::testing::Test {
 protected:
  ModelShape random_model() {
    const std::int64_t kv_heads = one_of({1, 2, 4});
    ModelShape model{.name = "random",
                     .architecture = random_() % 2 == 0 ? Architecture::kGpt2 : Architecture::kLlama,
                     .n_layer = one_of({1, 3, 24}),
                     .n_head = kv_heads * one_of({1, 2, 8}),
                     .n_kv_head = kv_heads,
                     .head_dim = one_of({16, 64, 128}),
                     .d_ff = one_of({64, 1000, 14336}),
                     .vocab_size = one_of({0, 50257})};
    model.n_embd = model.query_width();
    model.block_size = model.architecture == Architecture::kGpt2 ? 4096 : 0;
    return model;
  }
  std::int64_t one_of(std::initializer_list<std::int64_t> values) {
    return *(values.begin() + random_() % values.size());
  }
  // Calls check(hardware, model, pass, precisions) with random ones.
  template <typename F>
  void for_random_passes(F&& check) {
    const auto& machines = HardwareRegistry::builtin().all();
    for (int i = 0; i < 500; ++i)
      check(machines[random_() % machines.size()], random_model(),
            Pass{.batch = one_of({1, 7, 64}),
                 .past = one_of({0, 31, 4000}),
                 .tokens = one_of({1, 5, 512}),
                 .fused_attention = random_() % 2 == 0},
            mixed_precisions()[random_() % mixed_precisions().size()].precisions);
  }
  std::mt19937 random_{5};
};

TEST_F(PassProperties, NeverBelowEitherRoof) {
  for_random_passes([](const Hardware& h, const ModelShape& m, const Pass& p, const OperatorPrecisions& q) {
    const PassPrediction got = predict_pass(h, m, p, q);
    EXPECT_GE(got.time_ms, got.memory_ms * (1 - 1e-12));
    EXPECT_GE(got.time_ms, got.compute_ms * (1 - 1e-12));
    EXPECT_LE(got.time_ms, (got.memory_ms + got.compute_ms) * (1 + 1e-12));
    EXPECT_NEAR(got.memory_ms, 1e3 * got.bytes / h.bytes_per_s(), 1e-9 * got.memory_ms);
    EXPECT_GT(got.ai, 0);
    for (const OperatorPrediction& one : got.operators)
      EXPECT_TRUE(std::isfinite(one.time_ms) && std::isfinite(one.ai)) << op_name(one.op);
  });
}

TEST_F(PassProperties, GrowsWithBatchContextAndTokens) {
  for_random_passes([](const Hardware& h, const ModelShape& m, const Pass& p, const OperatorPrecisions& q) {
    const double time_ms = predict_pass(h, m, p, q).time_ms;
    const auto larger = [&](auto&& change) {
      Pass pass = p;
      change(pass);
      return predict_pass(h, m, pass, q).time_ms;
    };
    EXPECT_GT(larger([](Pass& pass) { pass.batch *= 2; }), time_ms);
    EXPECT_GT(larger([](Pass& pass) { pass.past += 100; }), time_ms);
    EXPECT_GT(larger([](Pass& pass) { pass.tokens += 1; }), time_ms);
  });
}

TEST_F(PassProperties, AMachineFourTimesAsFastTakesAQuarter) {
  for_random_passes([](const Hardware& h, const ModelShape& m, const Pass& p, const OperatorPrecisions& q) {
    Hardware fast = h;
    fast.bandwidth_gb_s.value *= 4;
    for (auto& [precision, figure] : fast.peak_tflop_s) figure.value *= 4;
    EXPECT_NEAR(predict_pass(fast, m, p, q).time_ms * 4 / predict_pass(h, m, p, q).time_ms, 1, 1e-12);
  });
}

TEST_F(PassProperties, TwoPassesReadMoreThanOne) {
  for_random_passes([](const Hardware& h, const ModelShape& m, Pass p, const OperatorPrecisions& q) {
    if (p.tokens == 1) return;
    p.fused_attention = true;
    Pass first = p;
    first.tokens = p.tokens - 1;
    const Pass last{.batch = p.batch, .past = p.past + first.tokens, .tokens = 1};
    const auto flops = [&](const Pass& pass) {
      double sum = 0;
      for (const Op op : kAllOps)
        if (op != Op::kLmHead) sum += product_flops(op, m, pass);
      return sum;
    };
    EXPECT_NEAR((flops(first) + flops(last)) / flops(p), 1, 1e-12);  // the same products in two pieces
    EXPECT_GT(predict_pass(h, m, first, q).weight_bytes + predict_pass(h, m, last, q).weight_bytes,
              predict_pass(h, m, p, q).weight_bytes);
  });
}

TEST_F(PassProperties, QuantisedWeightsAndCacheAreNeverLarger) {
  for_random_passes([](const Hardware& h, const ModelShape& m, const Pass& p, const OperatorPrecisions& q) {
    const PassPrediction quantised = predict_pass(h, m, p, q);
    const PassPrediction wide = predict_pass(h, m, p, all_in(Precision::kFp16));
    EXPECT_LE(quantised.weight_bytes, wide.weight_bytes);
    EXPECT_LE(quantised.cache_bytes, wide.cache_bytes);
  });
}

// --- Sweeps ---

TEST(Sweep, EveryCombinationInItsPlace) {
  ModelSweep sweep{.machines = HardwareRegistry::builtin().all(),
                   .models = llama_presets(),
                   .strategies = mixed_precision_names(),
                   .batches = {1, 2, 4, 8, 16},
                   .contexts = {128, 512, 1024, 4096, 16384, 32768},
                   .prefill = false,
                   .options = {}};
  const std::vector<ModelPoint> points = sweep_models(sweep);
  EXPECT_EQ(points.size(), 8U * 7 * 6 * 5 * 6);
  const ModelPoint& last = points.back();
  EXPECT_EQ(last.hardware, "gb10");
  EXPECT_EQ(last.strategy, "quality_first");
  EXPECT_EQ(last.batch, 16);
  EXPECT_EQ(last.context, 32768);
}

TEST(Sweep, APointIsAPass) {
  const ModelShape model = llama_preset("llama-3-8b");
  for (const bool prefill : {false, true}) {
    const std::vector<ModelPoint> points = sweep_models({.machines = {vendor("h200")},
                                                         .models = {model},
                                                         .strategies = {"fp8_balanced"},
                                                         .batches = {3},
                                                         .contexts = {100},
                                                         .prefill = prefill,
                                                         .options = {}});
    const Pass pass = prefill ? Pass{.batch = 3, .tokens = 100} : Pass{.batch = 3, .past = 99};
    const double time_ms =
        predict_pass(vendor("h200"), model, pass, find_mixed_precision("fp8_balanced").precisions).time_ms;
    ASSERT_EQ(points.size(), 1U);
    EXPECT_EQ(points[0].time_ms, time_ms);
    EXPECT_DOUBLE_EQ(points[0].tokens_per_s, 3e3 * (prefill ? 100 : 1) / time_ms);
  }
}

TEST(Sweep, OfProducts) {
  const std::vector<GemmPoint> points = sweep_gemm({vendor("h100"), vendor("b200")}, {{1, 8, 8}, {2, 8, 8}},
                                                   {Precision::kFp16, Precision::kFp8});
  ASSERT_EQ(points.size(), 8U);
  EXPECT_EQ(points[5].hardware, "b200");
  EXPECT_EQ(points[5].prediction.shape.M, 1);
  EXPECT_EQ(points[5].prediction.precision, Precision::kFp8);
}

TEST(Sweep, RefusesTooMuchAndNothing) {
  EXPECT_EQ(error_of([] { sweep_gemm({vendor("h100")}, {}, {Precision::kFp16}); }),
            "roofline: sweep: expected at least one of shapes, got none");
  EXPECT_EQ(error_of([] {
              sweep_gemm({vendor("h100")}, std::vector<GemmShape>(1000001, {1, 1, 1}), {Precision::kFp16});
            }),
            "roofline: sweep: expected at most 1000000 points, got 1000001");
  ModelSweep sweep{.machines = {vendor("h100")},
                   .models = llama_presets(),
                   .strategies = {"fp17"},
                   .batches = {1},
                   .contexts = {0},
                   .prefill = false,
                   .options = {}};
  EXPECT_EQ(error_of([&] { sweep_models(sweep); }), "roofline: expected 1 <= context <= 67108864, got 0");
  sweep.contexts = {1};
  EXPECT_NE(error_of([&] { sweep_models(sweep); }).find("strategy: expected one of fp16_baseline"),
            std::string::npos);
}

TEST(Pass, RefusesWhatCannotBe) {
  ModelShape model = llama_preset("llama-3-8b");
  const OperatorPrecisions fp16 = all_in(Precision::kFp16);
  EXPECT_EQ(error_of([&] { predict_pass(gb10(), model, {.batch = -1}, fp16); }),
            "roofline: expected 1 <= batch <= 1048576, got -1");
  EXPECT_EQ(error_of([&] { predict_generation(gb10(), model, 1, 5, 0, fp16); }),
            "roofline: expected 1 <= new_tokens <= 131072, got 0");
  model.n_kv_head = 3;
  EXPECT_EQ(error_of([&] { predict_pass(gb10(), model, {}, fp16); }),
            "roofline: expected n_head to be a multiple of n_kv_head, got n_head 32 and n_kv_head 3");
}

}  // namespace
}  // namespace kvfuse::roofline
