// FLOPs and bytes of the 17 operators against counts made one operation at a time, and the bytes of weights
// and cache.
#include "csrc/roofline/operators.h"

#include <gtest/gtest.h>

#include "tests/cpp/error_of.h"

namespace kvfuse::roofline {
namespace {

ModelShape tiny_gpt2() { return gpt2_shape(2, 2, 8, 10, 16); }

ModelShape tiny_llama() {
  return {.name = "tiny",
          .architecture = Architecture::kLlama,
          .n_layer = 3,
          .n_embd = 8,
          .n_head = 4,
          .n_kv_head = 2,
          .head_dim = 2,
          .d_ff = 12,
          .vocab_size = 11,
          .borrowing_layers = 1};
}

struct Example {
  ModelShape model;
  Pass pass;
  Precision precision;
};

const Example& example(int index) {
  static const Example examples[] = {
      {tiny_gpt2(), {.batch = 1, .past = 4, .tokens = 1}, Precision::kFp32},
      {tiny_gpt2(),
       {.batch = 2, .past = 1, .tokens = 3, .scored = 2, .fused_attention = false},
       Precision::kFp32},
      {tiny_llama(), {.batch = 3, .past = 5, .tokens = 1}, Precision::kFp16},
      {tiny_llama(),
       {.batch = 1, .past = 0, .tokens = 4, .scored = 1, .fused_attention = false},
       Precision::kFp16}};
  return examples[index];
}

struct Case {
  int example;
  Op op;
  double product_flops, other_flops, weight_bytes, cache_bytes, activation_bytes;
};

const Case kCases[] = {
    // gpt2 step: batch 1, 4 tokens past, 1 new, 1 scored, fused, 4 bytes an element
    {0, Op::kEmbedding, 0, 0, 32, 0, 32},
    {0, Op::kQProj, 256, 16, 576, 0, 128},
    {0, Op::kKProj, 256, 16, 576, 0, 128},
    {0, Op::kVProj, 256, 16, 576, 0, 128},
    {0, Op::kAttnQk, 160, 0, 0, 320, 64},
    {0, Op::kAttnSoftmax, 0, 100, 0, 0, 0},
    {0, Op::kAttnAv, 160, 0, 0, 320, 64},
    {0, Op::kOProj, 256, 16, 576, 0, 128},
    {0, Op::kFfnGate, 0, 0, 0, 0, 0},
    {0, Op::kFfnUp, 1024, 64, 2304, 0, 320},
    {0, Op::kFfnAct, 0, 576, 0, 0, 512},
    {0, Op::kFfnDown, 1024, 16, 2112, 0, 320},
    {0, Op::kNorm, 0, 280, 320, 0, 320},
    {0, Op::kPosition, 0, 8, 32, 0, 64},
    {0, Op::kResidual, 0, 32, 0, 0, 384},
    {0, Op::kKvCache, 0, 0, 0, 128, 128},
    {0, Op::kLmHead, 160, 0, 320, 0, 72},
    // gpt2 prompt: batch 2, 1 tokens past, 3 new, 2 scored, unfused, 4 bytes an element
    {1, Op::kEmbedding, 0, 0, 192, 0, 192},
    {1, Op::kQProj, 1536, 96, 576, 0, 768},
    {1, Op::kKProj, 1536, 96, 576, 0, 768},
    {1, Op::kVProj, 1536, 96, 576, 0, 768},
    {1, Op::kAttnQk, 576, 0, 0, 512, 768},
    {1, Op::kAttnSoftmax, 0, 360, 0, 0, 768},
    {1, Op::kAttnAv, 576, 0, 0, 512, 768},
    {1, Op::kOProj, 1536, 96, 576, 0, 768},
    {1, Op::kFfnGate, 0, 0, 0, 0, 0},
    {1, Op::kFfnUp, 6144, 384, 2304, 0, 1920},
    {1, Op::kFfnAct, 0, 3456, 0, 0, 3072},
    {1, Op::kFfnDown, 6144, 96, 2112, 0, 1920},
    {1, Op::kNorm, 0, 1568, 320, 0, 1792},
    {1, Op::kPosition, 0, 48, 192, 0, 384},
    {1, Op::kResidual, 0, 192, 0, 0, 2304},
    {1, Op::kKvCache, 0, 0, 0, 768, 768},
    {1, Op::kLmHead, 640, 0, 320, 0, 288},
    // llama step: batch 3, 5 tokens past, 1 new, 1 scored, fused, 2 bytes an element
    {2, Op::kEmbedding, 0, 0, 48, 0, 48},
    {2, Op::kQProj, 1152, 0, 384, 0, 288},
    {2, Op::kKProj, 384, 0, 128, 0, 144},
    {2, Op::kVProj, 384, 0, 128, 0, 144},
    {2, Op::kAttnQk, 864, 0, 0, 432, 144},
    {2, Op::kAttnSoftmax, 0, 1080, 0, 0, 0},
    {2, Op::kAttnAv, 864, 0, 0, 432, 144},
    {2, Op::kOProj, 1152, 0, 384, 0, 288},
    {2, Op::kFfnGate, 1728, 0, 576, 0, 360},
    {2, Op::kFfnUp, 1728, 0, 576, 0, 360},
    {2, Op::kFfnAct, 0, 540, 0, 0, 648},
    {2, Op::kFfnDown, 1728, 0, 576, 0, 360},
    {2, Op::kNorm, 0, 672, 112, 0, 672},
    {2, Op::kPosition, 0, 288, 0, 0, 384},
    {2, Op::kResidual, 0, 144, 0, 0, 864},
    {2, Op::kKvCache, 0, 0, 0, 96, 96},
    {2, Op::kLmHead, 528, 0, 176, 0, 114},
    // llama prompt: batch 1, 0 tokens past, 4 new, 1 scored, unfused, 2 bytes an element
    {3, Op::kEmbedding, 0, 0, 64, 0, 64},
    {3, Op::kQProj, 1536, 0, 384, 0, 384},
    {3, Op::kKProj, 512, 0, 128, 0, 192},
    {3, Op::kVProj, 512, 0, 128, 0, 192},
    {3, Op::kAttnQk, 480, 0, 0, 96, 576},
    {3, Op::kAttnSoftmax, 0, 600, 0, 0, 768},
    {3, Op::kAttnAv, 480, 0, 0, 96, 576},
    {3, Op::kOProj, 1536, 0, 384, 0, 384},
    {3, Op::kFfnGate, 2304, 0, 576, 0, 480},
    {3, Op::kFfnUp, 2304, 0, 576, 0, 480},
    {3, Op::kFfnAct, 0, 720, 0, 0, 864},
    {3, Op::kFfnDown, 2304, 0, 576, 0, 480},
    {3, Op::kNorm, 0, 800, 112, 0, 800},
    {3, Op::kPosition, 0, 384, 0, 0, 512},
    {3, Op::kResidual, 0, 192, 0, 0, 1152},
    {3, Op::kKvCache, 0, 0, 0, 128, 128},
    {3, Op::kLmHead, 176, 0, 176, 0, 38},
};

TEST(Operators, EveryCase) {
  for (const Case& c : kCases) {
    const Example& s = example(c.example);
    SCOPED_TRACE(std::to_string(c.example) + " " + std::string(op_name(c.op)));
    const OperatorCost got = operator_costs(s.model, s.pass, all_in(s.precision))[index_of(c.op)];
    EXPECT_EQ(got.product_flops, c.product_flops);
    EXPECT_EQ(got.other_flops, c.other_flops);
    EXPECT_EQ(got.weight_bytes, c.weight_bytes);
    EXPECT_EQ(got.cache_bytes, c.cache_bytes);
    EXPECT_EQ(got.activation_bytes, c.activation_bytes);
    EXPECT_EQ(product_flops(c.op, s.model, s.pass), c.product_flops);
  }
}

TEST(Operators, ThereAre17) {
  EXPECT_EQ(op_names().size(), 17U);
  EXPECT_EQ(op_names().front(), "embedding");
  EXPECT_EQ(op_names().back(), "lm_head");
}

TEST(Operators, AQuantisedCacheCostsItsScalesAndItsRounding) {
  const Example& s = example(2);
  OperatorPrecisions precisions = all_in(Precision::kFp16);
  precisions.of[index_of(Op::kKvCache)] = Precision::kInt8;
  const OperatorCosts costs = operator_costs(s.model, s.pass, precisions);
  // 3 layers read, 3 sequences of 6 tokens, 2 heads: 2 codes and a float each; 2 layers write 1 token of K, V
  EXPECT_EQ(costs[index_of(Op::kAttnQk)].cache_bytes, 3 * 3 * 6 * 2 * (2 + 4));
  EXPECT_EQ(costs[index_of(Op::kKvCache)].cache_bytes, 2 * 2 * 3 * 2 * (2 + 4));
  EXPECT_EQ(costs[index_of(Op::kKvCache)].other_flops, 2 * 2 * 2 * 3 * (2 * 2));
}

TEST(Operators, RefusesPassesThatCannotBe) {
  EXPECT_EQ(error_of([] { check_pass({.batch = 0}); }), "roofline: expected 1 <= batch <= 1048576, got 0");
  EXPECT_EQ(error_of([] { check_pass({.past = -1}); }), "roofline: expected 0 <= past <= 67108864, got -1");
  EXPECT_EQ(error_of([] { check_pass({.tokens = 0}); }), "roofline: expected 1 <= tokens <= 67108864, got 0");
  EXPECT_EQ(error_of([] { check_pass({.tokens = 3, .scored = 4}); }),
            "roofline: expected 0 <= scored <= 3, got 4");
}

// --- Models ---

struct WeightCase {
  const char* name;
  double attention, ffn, head, embedding, vectors;
};

// From the config.json of each: layers * (2 H^2 + 2 H kv), layers * 3 H d_ff, vocabulary * H, norms.
const WeightCase kWeightCases[] = {
    {"tinyllama-1.1b", 207618048, 761266176, 65536000, 65536000, 92160},
    {"llama-2-7b", 2147483648, 4328521728, 131072000, 131072000, 266240},
    {"llama-2-13b", 4194304000, 8493465600, 163840000, 163840000, 414720},
    {"llama-2-70b", 12079595520, 56371445760, 262144000, 262144000, 1318912},
    {"llama-3-8b", 1342177280, 5637144576, 525336576, 525336576, 266240},
    {"llama-3-70b", 12079595520, 56371445760, 1050673152, 1050673152, 1318912},
    {"mistral-7b", 1342177280, 5637144576, 131072000, 131072000, 266240},
};

TEST(Model, WeightsOfThePresets) {
  for (const WeightCase& c : kWeightCases) {
    SCOPED_TRACE(c.name);
    const WeightCount got = count_weights(llama_preset(c.name));
    EXPECT_EQ(got.attention, c.attention);
    EXPECT_EQ(got.ffn, c.ffn);
    EXPECT_EQ(got.head, c.head);
    EXPECT_EQ(got.embedding, c.embedding);
    EXPECT_EQ(got.vectors, c.vectors);
  }
}

TEST(Model, Gpt2HasThePublishedNumberOfParameters) {
  const auto total = [](std::int64_t layers, std::int64_t heads, std::int64_t width) {
    return count_weights(gpt2_shape(layers, heads, width, 50257, 1024)).total();
  };
  EXPECT_EQ(total(12, 12, 768), 124439808);
  EXPECT_EQ(total(24, 16, 1024), 354823168);
  EXPECT_EQ(total(36, 20, 1280), 774030080);
  EXPECT_EQ(total(48, 25, 1600), 1557611200);
}

struct KvCase {
  ModelShape model;
  double tokens, batch;
  KvStorage storage;
  double bytes;
};

TEST(Model, CacheSizes) {
  const ModelShape llama3 = llama_preset("llama-3-8b");
  const ModelShape medium = gpt2_shape(24, 16, 1024, 50257, 1024);
  ModelShape shared = medium;
  shared.borrowing_layers = 12;
  constexpr double kMiB = 1 << 20;
  const KvCase cases[] = {
      {llama3, 1, 1, {}, 131072},
      {llama3, 32768, 1, {}, 4096 * kMiB},
      {llama3, 32768, 1, {.precision = Precision::kFp8}, 2048 * kMiB},
      {llama3, 32768, 1, {.precision = Precision::kNvfp4}, 1152 * kMiB},
      {llama3, 32768, 1, {.precision = Precision::kNvfp4, .recent_window = 256}, 1175 * kMiB},
      {llama3, 100, 1, {.precision = Precision::kNvfp4, .recent_window = 256}, 100 * 131072},
      // 32 layers, K and V, 8 heads of 128 codes and a float
      {llama3, 1, 1, {.precision = Precision::kInt8}, 32 * 2 * 8 * (128 + 4)},
      {llama3, 1, 1, {.precision = Precision::kInt4}, 32 * 2 * 8 * (64 + 2)},
      {llama3, 10, 3, {.precision = Precision::kFp32}, 30 * 262144},
      {medium, 1, 1, {}, 98304},
      {medium, 1024, 1, {}, 100663296},
      {medium, 1024, 1, {.precision = Precision::kInt8}, 24 * 2 * 16 * (64 + 4) * 1024},
      {shared, 1024, 1, {}, 50331648},
      {shared, 1024, 1, {.precision = Precision::kInt8}, 12 * 2 * 16 * (64 + 4) * 1024},
      {llama_preset("llama-2-7b"), 1, 1, {}, 524288},
      {llama_preset("llama-2-70b"), 1, 1, {}, 327680},
      {llama_preset("llama-3-8b"), 0, 1, {}, 0},
  };
  for (const KvCase& c : cases)
    EXPECT_EQ(kv_cache_bytes(c.model, c.tokens, c.batch, c.storage), c.bytes)
        << c.tokens << " tokens in " << precision_name(c.storage.precision);
}

TEST(Model, CrossoverAndShares) {
  ModelShape model = llama_preset("llama-3-8b");
  const double weights = 2 * count_weights(model).linear();
  EXPECT_EQ(weights, 13958643712);
  EXPECT_EQ(kv_crossover_tokens(model, weights, 1, {}), 106496);
  EXPECT_EQ(kv_crossover_tokens(model, weights, 64, {}), 1664);
  EXPECT_NEAR(ffn_share(model), 0.8077, 5e-5);
  EXPECT_DOUBLE_EQ(ffn_share(gpt2_shape(12, 12, 768, 50257, 1024)), 2.0 / 3);
}

TEST(Model, RefusesShapesThatCannotBe) {
  const auto error = [](auto&& change) {
    ModelShape model = llama_preset("llama-3-8b");
    change(model);
    return error_of([&] { check_model(model); });
  };
  EXPECT_EQ(error([](ModelShape&) {}), "");
  EXPECT_EQ(error([](ModelShape& m) { m.n_kv_head = 5; }),
            "roofline: expected n_head to be a multiple of n_kv_head, got n_head 32 and n_kv_head 5");
  EXPECT_EQ(error([](ModelShape& m) { m.n_layer = 0; }), "roofline: expected 1 <= n_layer <= 1024, got 0");
  EXPECT_EQ(error([](ModelShape& m) { m.n_embd = -1; }), "roofline: expected 1 <= n_embd <= 1048576, got -1");
  EXPECT_EQ(error([](ModelShape& m) { m.d_ff = std::int64_t{1} << 50; }),
            "roofline: expected 1 <= d_ff <= 4194304, got 1125899906842624");
  EXPECT_EQ(error([](ModelShape& m) { m.borrowing_layers = 32; }),
            "roofline: expected 0 <= borrowing_layers <= 31, got 32");
  EXPECT_EQ(error([](ModelShape& m) { m.vocab_size = -2; }),
            "roofline: expected 0 <= vocab_size <= 16777216, got -2");
  EXPECT_EQ(error_of([] { gpt2_shape(12, 7, 768, 50257, 1024); }),
            "roofline: expected n_embd to be a multiple of n_head, got n_embd 768 and n_head 7");
  EXPECT_EQ(
      error_of([] { llama_preset("lama-3-8b"); }),
      "roofline: model: expected one of tinyllama-1.1b, llama-2-7b, llama-2-13b, llama-2-70b, llama-3-8b, "
      "llama-3-70b, mistral-7b, got \"lama-3-8b\" (did you mean llama-3-8b?)");
}

}  // namespace
}  // namespace kvfuse::roofline
