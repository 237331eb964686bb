// Calibration files and the times predicted from them.
#include "csrc/roofline/calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "csrc/roofline/predictor.h"
#include "tests/cpp/error_of.h"
#include "tests/cpp/roofline_fixture.h"

namespace kvfuse::roofline {
namespace {

using enum Precision;
using nlohmann::json;

TEST(Calibration, FileAndBack) {
  const Calibration want = tiny();
  const Calibration got = read_calibration(calibration_json(want), "c.json");
  EXPECT_EQ(calibration_json(got), calibration_json(want));
  EXPECT_EQ(got.products[2].seconds, 64e-4);
  EXPECT_EQ(got.attentions[1].kv_len, 400);
  EXPECT_EQ(got.num_threads, 2);
}

TEST(Calibration, Roofs) {
  const MachineLimits limits = roofs(tiny(), kFp32);
  EXPECT_EQ(limits.read_bytes_per_s, 1e9);                            // no product reads faster
  EXPECT_EQ(limits.matmul_flops_per_s, 2.0 * 16 * 100 * 100 / 4e-4);  // 800 MFLOP/s, at 16 and 256 rows
  Calibration fast = tiny();
  fast.products[0].seconds = 2e-5;  // 40000 bytes: 2 GB/s
  EXPECT_EQ(roofs(fast, kFp32).read_bytes_per_s, 40000 / 2e-5);
  EXPECT_EQ(error_of([] { roofs(tiny(), kInt8); }),
            "roofline: calibration of a machine: expected products in int8, got none");
  const Hardware hardware = calibrated_hardware(tiny(), "here");
  EXPECT_EQ(hardware.bandwidth_gb_s.value, 1);
  EXPECT_EQ(hardware.peak_tflop_s.at(kFp32).value, 8e8 / 1e12);
  EXPECT_EQ(hardware.peak_tflop_s.at(kFp32).source, "calibration of 2026-01-01T00:00:00Z");
  EXPECT_EQ(hardware.profile, Profile::kCalibrated);
}

TEST(Calibration, AtAnotherBandwidth) {
  // 40,000 bytes in 1e-4 s at 1 GB/s: 4e-5 s of reading. At half of that 8e-5.
  Calibration calibration = tiny();
  calibration.step_products = {{kFp32, 1, 100, 100, 5e-5}};  // 3e-5 beside 4e-5
  const Calibration slow = at_bandwidth(calibration, 5e8);
  EXPECT_NEAR(slow.products[0].seconds, std::sqrt(1e-8 - 16e-10 + 64e-10), 1e-15);
  EXPECT_NEAR(slow.step_products[0].seconds, std::sqrt(9e-10 + 64e-10), 1e-15);
  // Of a cache of 100 tokens 80,000 bytes
  EXPECT_NEAR(slow.attentions[0].seconds, std::sqrt(1e-8 - 64e-10 + 256e-10), 1e-15);
  EXPECT_EQ(slow.pass_overhead_s, calibration.pass_overhead_s);
  EXPECT_EQ(slow.read_bytes_per_s, 5e8);
  EXPECT_EQ(calibration_json(at_bandwidth(calibration, 1e9)), calibration_json(calibration));
  calibration.usual_read_bytes_per_s = 5e8;  // what the times were measured at: 8e-5 for the bytes, of 5e-5
  EXPECT_NEAR(at_bandwidth(calibration, 1e9).step_products[0].seconds, 2.5e-5, 1e-15);
  EXPECT_EQ(calibration_json(at_bandwidth(calibration, 5e8)), calibration_json(calibration));
  EXPECT_NE(error_of([] { at_bandwidth(tiny(), std::nan("")); }).find("read_bytes_per_s"), std::string::npos);
}

TEST(Predictor, ADecodeStepHasProductsOfItsOwn) {
  Calibration calibration = tiny();
  calibration.products = {{kFp32, 1, 100, 100, 1e-4}, {kFp32, 16, 100, 100, 4e-4}};
  calibration.step_products = {{kFp32, 1, 100, 100, 5e-5}, {kFp32, 2, 100, 100, 6e-5}};
  const Predictor predictor(calibration);
  EXPECT_EQ(predictor.product_seconds(kFp32, 1, 100, 100, true), 5e-5);
  EXPECT_EQ(predictor.product_seconds(kFp32, 1, 100, 100), 1e-4);
  EXPECT_EQ(predictor.product_seconds(kFp32, 16, 100, 100, true), 4e-4);  // more rows than were measured
  const ModelShape model = gpt2_shape(1, 1, 100, 0, 1000, false);
  const auto products_ms = [&](const Pass& pass) {
    return predictor.pass(model, pass, kFp32, {.precision = kFp32}).products_ms;
  };
  EXPECT_NEAR(2 * products_ms({.past = 9}), products_ms({}), 1e-12);
}

struct ProductCase {
  std::int64_t rows, in, out;
  double seconds;
};

TEST(Predictor, Products) {
  // Between 1 and 16 rows the time grows by a factor of 4 over two doublings twice: as the root of rows; then
  // in proportion. 200 x 200 is the geometric middle of 100 x 100 and 400 x 400: rates 1e8 and 2e8.
  const ProductCase cases[] = {
      {1, 100, 100, 1e-4},     {16, 100, 100, 4e-4},        {256, 100, 100, 64e-4},
      {4, 100, 100, 2e-4},     {64, 100, 100, 16e-4},       {1024, 100, 100, 256e-4},
      {1, 400, 400, 8e-4},     {10, 400, 400, 80e-4},       {1, 200, 200, 40000 / std::sqrt(1e8 * 2e8)},
      {1, 50, 50, 2500 / 1e8}, {1, 800, 800, 640000 / 2e8}, {16, 200, 200, 640000 / std::sqrt(4e8 * 2e8)},
  };
  for (const ProductCase& c : cases)
    EXPECT_NEAR(Predictor(tiny()).product_seconds(kFp32, c.rows, c.in, c.out), c.seconds,
                1e-12 + 1e-9 * c.seconds)
        << c.rows << " x " << c.in << " x " << c.out;
  EXPECT_EQ(error_of([] { Predictor(tiny()).product_seconds(kBf16, 1, 1, 1); }),
            "roofline: calibration of a machine: expected products in bf16, got none");
  EXPECT_EQ(error_of([] { Predictor(tiny()).product_seconds(kFp32, 0, 1, 1); }).substr(0, 33),
            "roofline: expected 1 <= rows <= 9");
}

TEST(Predictor, Attention) {
  AttentionRate wanted{.kv = kFp32, .n_head = 4, .n_kv_head = 4, .head_dim = 25, .kv_len = 100};
  EXPECT_NEAR(Predictor(tiny()).attention_seconds(wanted, kFp32), 1e-4, 1e-15);
  wanted.kv_len = 200;  // 80,000 bytes of K and of V: half-way between 800 MB/s and 400 MB/s
  EXPECT_NEAR(Predictor(tiny()).attention_seconds(wanted, kFp32), 160000 / std::sqrt(8e8 * 4e8), 1e-12);
  wanted.kv_len = 800;
  EXPECT_NEAR(Predictor(tiny()).attention_seconds(wanted, kFp32), 16e-4, 1e-12);
  wanted.batch = 4;  // as many bytes as 4 times the length
  wanted.kv_len = 100;
  EXPECT_NEAR(Predictor(tiny()).attention_seconds(wanted, kFp32), 8e-4, 1e-12);
  // Not measured: 100 rows of 4 heads, 25 codes and a float, for K and V, are 23,200 bytes at 1 GB/s; 100
  // pairs of 4 heads with 2 x 25 multiply-adds are 40 kFLOP at 800 MFLOP/s, which takes longer.
  wanted.kv = kInt8;
  wanted.batch = 1;
  EXPECT_NEAR(Predictor(tiny()).attention_seconds(wanted, kFp32), 40e3 / 8e8, 1e-15);
  // With arithmetic of 2 GFLOP/s it is the reading: no product was measured to read faster than 1 GB/s.
  Calibration strong = tiny();
  strong.products = {{kFp32, 100, 100, 100, 1e-3}};  // 2 GFLOP/s
  EXPECT_NEAR(Predictor(strong).attention_seconds(wanted, kFp32), 23200 / 1e9, 1e-15);
  // A prompt of 10: 55 pairs of 4 heads, 2 x 25 multiply-adds each; 22 kFLOP at 800 MFLOP/s
  wanted = {.kv = kFp32, .n_head = 4, .n_kv_head = 4, .head_dim = 25, .query_tokens = 10, .kv_len = 10};
  EXPECT_NEAR(Predictor(tiny()).attention_seconds(wanted, kFp32), 2 * 55 * 4 * 50 / 8e8, 1e-15);
}

TEST(Predictor, APassIsItsParts) {
  const ModelShape model = gpt2_shape(2, 4, 100, 100, 1000, false);
  const Calibration calibration = tiny();
  const TimeParts got = Predictor(calibration).pass(model, {.past = 99}, kFp32, {.precision = kFp32});
  const auto product = [&](std::int64_t in, std::int64_t out) {
    return Predictor(calibration).product_seconds(kFp32, 1, in, out);
  };
  const double layer = product(100, 300) + product(100, 100) + 2 * product(100, 400);
  EXPECT_NEAR(got.products_ms, 1e3 * (2 * layer + product(100, 100)), 1e-9);
  EXPECT_NEAR(got.attention_ms, 2 * 0.1, 1e-9);
  EXPECT_EQ(got.overhead_ms, 0.1);
  // embedding 100 and positions 200 elements; a layer: norms 400, GELU 800, residuals 600; last norm 200
  EXPECT_NEAR(got.elementwise_ms, 1e3 * 4 * (100 + 200 + 2 * 1800 + 200) / 2e9, 1e-12);
  EXPECT_DOUBLE_EQ(got.total_ms(), got.products_ms + got.attention_ms + got.elementwise_ms + got.overhead_ms);
}

TEST(Predictor, ABorrowingLayerHasNoKAndVProducts) {
  ModelShape model = gpt2_shape(2, 4, 100, 0, 1000, false);
  const double all = Predictor(tiny()).pass(model, {}, kFp32, {.precision = kFp32}).products_ms;
  model.borrowing_layers = 1;
  const double shared = Predictor(tiny()).pass(model, {}, kFp32, {.precision = kFp32}).products_ms;
  EXPECT_NEAR(all - shared,
              1e3 * (Predictor(tiny()).product_seconds(kFp32, 1, 100, 300) -
                     Predictor(tiny()).product_seconds(kFp32, 1, 100, 100)),
              1e-12);
}

TEST(Predictor, GenerationIsTheSumOfItsPasses) {
  const ModelShape model = gpt2_shape(2, 4, 100, 100, 1000, false);
  const KvStorage kv{.precision = kFp32};
  const auto pass = [&](std::int64_t past, std::int64_t tokens) {
    return Predictor(tiny()).pass(model, {.past = past, .tokens = tokens}, kFp32, kv).total_ms();
  };
  const auto generation = [&](bool cached) {
    return Predictor(tiny()).generation(model, cached, 1, 10, 3, kFp32, kv).total_ms();
  };
  EXPECT_NEAR(generation(true), pass(0, 10) + pass(10, 1) + pass(11, 1), 1e-12);
  EXPECT_NEAR(generation(false), pass(0, 10) + pass(0, 11) + pass(0, 12), 1e-12);
}

TEST(Predictor, NeverBelowTheRoofs) {
  std::mt19937 random(13);
  const MachineLimits limits = roofs(tiny(), kFp32);
  for (int i = 0; i < 2000; ++i) {
    const auto size = [&] { return static_cast<std::int64_t>(1 + random() % 2000); };
    const std::int64_t rows = size(), in = size(), out = size();
    const double seconds = Predictor(tiny()).product_seconds(kFp32, rows, in, out);
    const double flops = 2.0 * static_cast<double>(rows * in * out);
    EXPECT_GE(seconds * (1 + 1e-9), flops / limits.matmul_flops_per_s);
    EXPECT_TRUE(std::isfinite(seconds));
  }
}

struct BadFile {
  const char* pointer;
  json value;  // null removes
  const char* error;
};

TEST(Calibration, RefusesWhatItDoesNotSayAsItShould) {
  const BadFile files[] = {
      {"/schema_version", 2, "c.json.schema_version: expected a whole number from 1 to 1, got 2"},
      {"/machine", "", "c.json.machine: expected a string that is not empty, got \"\""},
      {"/kind", "tpu", "c.json: roofline: calibration: expected kind to be \"cpu\" or \"gpu\", got \"tpu\""},
      {"/num_threads", 0, "c.json.num_threads: expected a whole number from 1 to 1048576, got 0"},
      {"/num_threads", -1, "c.json.num_threads: expected a whole number from 1 to 1048576, got -1"},
      {"/read_bytes_per_s", -5, "c.json.read_bytes_per_s: expected a positive finite number, got -5"},
      {"/read_bytes_per_s", "fast",
       "c.json.read_bytes_per_s: expected a positive finite number, got \"fast\""},
      {"/pass_overhead_s", -1e-9,
       "c.json.pass_overhead_s: expected a finite number of at least 0, got -1e-09"},
      {"/products", json::array(), "c.json: roofline: calibration: expected at least one product, got none"},
      {"/products", 3, "c.json.products: expected an array, got 3"},
      {"/products/1/rows", 1.5,
       "c.json.products[1].rows: expected a whole number from 1 to 67108864, got 1.5"},
      {"/products/1/rows", 1,
       "c.json: roofline: calibration: expected every point once, got fp32 [1, 100] x "
       "[100, 100] twice"},
      {"/products/0/seconds", 0, "c.json.products[0].seconds: expected a positive finite number, got 0"},
      {"/products/0/second", 1, "c.json.products[0]: expected no key \"second\" (did you mean \"seconds\"?)"},
      {"/products/0/precision", "fp64",
       "c.json: roofline: precision: expected one of fp32, fp16, bf16, fp8, int8, int4, nvfp4, got \"fp64\" "
       "(did "
       "you mean fp32?)"},
      {"/attentions/0/n_kv_head", 3,
       "c.json: roofline: expected attentions.n_head to be a multiple of attentions.n_kv_head, got "
       "attentions.n_head 4 and attentions.n_kv_head 3"},
      {"/attentions/0/query_tokens", 101,
       "c.json: roofline: expected 1 <= attentions.query_tokens <= 100, got 101"},
      {"/notes", "x", "c.json: expected no key \"notes\" (did you mean \"kind\"?)"},
  };
  for (const BadFile& bad : files) {
    json file = json::parse(calibration_json(tiny()));
    file[json::json_pointer(bad.pointer)] = bad.value;
    const std::string error = error_of([&] { read_calibration(file.dump(), "c.json"); });
    if (std::string_view(bad.pointer) == "/notes") {
      EXPECT_EQ(error.substr(0, 35), std::string(bad.error).substr(0, 35));
    } else {
      EXPECT_EQ(error, bad.error);
    }
  }
  EXPECT_NE(error_of([] { read_calibration("{", "c.json"); }).find("c.json: expected JSON"),
            std::string::npos);
  json file = json::parse(calibration_json(tiny()));
  file.erase("time");
  EXPECT_EQ(error_of([&] { read_calibration(file.dump(), "c.json"); }),
            "c.json: expected the key \"time\", got none");
  Calibration nan = tiny();
  nan.products[0].seconds = std::nan("");
  EXPECT_EQ(error_of([&] { calibration_json(nan); }),
            "roofline: expected products.seconds to be a positive finite number, got nan");
}

}  // namespace
}  // namespace kvfuse::roofline
