// The CPU's fused linear layer on every instruction set of this machine, against its double twin.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/reference/gpt2_step.h"
#include "kernels/weight_pack.h"
#include "tests/cpp/isa_fixture.h"
#include "tests/cpp/linear_fixture.h"

namespace kvfuse {
namespace {

using test::LinearCase;
using test::LinearTensors;

constexpr WeightFormat kFormats[] = {WeightFormat::kFloat,      WeightFormat::kFloatPanels,
                                     WeightFormat::kInt8Rows,   WeightFormat::kInt8Panels,
                                     WeightFormat::kInt4Groups, WeightFormat::kInt4Panels};
constexpr WeightFormat kInt8Formats[] = {WeightFormat::kInt8Rows, WeightFormat::kInt8Panels};
constexpr WeightFormat kInt4Formats[] = {WeightFormat::kInt4Groups, WeightFormat::kInt4Panels};
constexpr WeightFormat kPanelFormats[] = {WeightFormat::kFloatPanels, WeightFormat::kInt8Panels,
                                          WeightFormat::kInt4Panels};
constexpr DType kDtypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

class Linear : public test::OnIsa {
 protected:
  static void check(const LinearCase& c) {
    SCOPED_TRACE(describe(c));
    LinearTensors t(c);
    const std::vector<double> want = reference::linear(t.params);
    const test::Tolerance tolerance(t);
    std::vector<double> allowed;
    for (std::int64_t i = 0; i < c.rows * c.out_size; ++i)
      allowed.push_back(tolerance.of(i / c.out_size, i % c.out_size, want[static_cast<std::size_t>(i)]));
    cpu::linear(t.params);
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_TRUE(std::fabs(t.out[static_cast<std::int64_t>(i)] - want[i]) <= allowed[i])  // false for NaN
          << "element " << i << ": got " << t.out[static_cast<std::int64_t>(i)] << ", want " << want[i]
          << " to " << allowed[i];
  }
};

TEST_P(Linear, RowsAndSizes) {
  for (const DType dtype : kDtypes)
    for (const WeightFormat format : kFormats)
      for (const std::int64_t rows : {1, 2, 3, 4, 5, 16, 67})
        for (const std::int64_t in : has_int4_codes(format)
                                         ? std::vector<std::int64_t>{32, 64, 96, 160, 768, 800, 3104}
                                         : std::vector<std::int64_t>{1, 16, 72, 100, 768}) {
          if (format == WeightFormat::kInt8Panels && in % kQuadInputs != 0) continue;
          check({.dtype = dtype, .rows = rows, .in = in, .out_size = 70, .weight_format = format});
        }
  for (const WeightFormat format : {WeightFormat::kFloat, WeightFormat::kFloatPanels})
    for (const DType dtype : kDtypes)
      for (const std::int64_t rows : {6, 7, 12, 13, 35})
        for (const std::int64_t in : {1544, 1552, 3072})  // longer than the caches nearest to a core hold
          for (const std::int64_t out_size : {9, 70})
            check({.dtype = dtype, .rows = rows, .in = in, .out_size = out_size, .weight_format = format});
  for (const std::int64_t rows : {1, 2, 3, 17})
    for (const std::int64_t out_size : {560, 573, 1100})  // panels enough for several streams, of any length
      for (const WeightFormat format : kPanelFormats)
        check({.dtype = DType::kFloat32,
               .rows = rows,
               .in = has_int4_codes(format) ? 64 : 40,
               .out_size = out_size,
               .weight_format = format});
  for (const WeightFormat format : kInt8Formats)
    for (const std::int64_t rows : {1, 3, 14, 67})
      check({.dtype = DType::kFloat32,
             .rows = rows,
             .in = 768,
             .out_size = 70,
             .weight_format = format,
             .fine_activations = true});
}

TEST_P(Linear, EpiloguesAndPrologues) {
  for (const DType dtype : kDtypes)
    for (const WeightFormat format : kFormats)
      for (const Epilogue epilogue :
           {Epilogue::kStore, Epilogue::kGeluTanh, Epilogue::kGeluExact, Epilogue::kAdd})
        for (const bool norm : {false, true})
          for (const bool biases : {false, true})
            for (const bool float32_out : {false, true})
              check({.dtype = dtype,
                     .rows = 3,
                     .in = 96,
                     .out_size = 9,
                     .norm = norm,
                     .epilogue = epilogue,
                     .float32_out = float32_out,
                     .biases = biases,
                     .weight_format = format});
}

// The row of x alone, and one of so many that products may go another way.
constexpr std::int64_t kManyRows = 27;

TEST_P(Linear, LongRowsFillTheIntegersButNeverOverflow) {
  for (const std::int64_t in : {3072, 6400, 20000}) {
    check({.dtype = DType::kFloat32, .rows = 4, .in = in, .out_size = 5});
    for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{4}, kManyRows})
      for (const WeightFormat format : kInt8Formats) {
        check({.dtype = DType::kFloat32, .rows = rows, .in = in, .out_size = 5, .weight_format = format});
        for (const int code : {127, -127}) {
          LinearTensors t({.dtype = DType::kFloat32,
                           .rows = rows,
                           .in = in,
                           .out_size = 2,
                           .biases = false,
                           .weight_format = format});
          const int zero = format == WeightFormat::kInt8Panels ? kPackedZero : 0;
          for (char& to : t.weight.bytes) to = static_cast<char>(code + zero);
          for (std::int64_t i = 0; i < rows * in; ++i) t.x.set(i, i / in % 2 == 0 ? 3.0F : -3.0F);
          const std::vector<double> want = reference::linear(t.params);
          cpu::linear(t.params);
          for (std::size_t i = 0; i < want.size(); ++i)
            EXPECT_TRUE(std::fabs(t.out[static_cast<std::int64_t>(i)] / want[i] - 1) <= 1e-6) << i;
        }
      }
  }
}

// An input 50 times the rest must not coarsen those that are rounded with it: beside eight bits a block it
// would leave errors of 50 / 127 / sqrt(12) in each, with these weights 0.9 in all.
TEST_P(Linear, AnOutlierCoarsensNoOtherInput) {
  for (const WeightFormat format : kInt8Formats)
    for (const std::int64_t rows : {std::int64_t{1}, kManyRows}) {
      LinearTensors t({.dtype = DType::kFloat32,
                       .rows = rows,
                       .in = 768,
                       .out_size = 70,
                       .biases = false,
                       .weight_format = format});
      for (std::int64_t row = 0; row < rows; row += 2) t.x.set(row * 768 + 100, 50.0F);
      for (std::int64_t o = 0; o < 70; ++o) t.weight_scale.set(o, 1.0F / 74.0F);  // codes of deviation 74
      const std::vector<double> want = reference::linear(t.params);
      cpu::linear(t.params);
      double squares = 0.0;
      for (std::size_t i = 0; i < want.size(); ++i)
        squares += std::pow(t.out[static_cast<std::int64_t>(i)] - want[i], 2);
      // Blocks without outliers have 3.2 / 127 at most for a step, most of them: 0.2 in all.
      EXPECT_TRUE(std::sqrt(squares / static_cast<double>(want.size())) <= 0.25);
    }
}

TEST_P(Linear, LayernormOfALargeMean) {
  for (const WeightFormat format : kFormats)
    check({.dtype = DType::kFloat32,
           .rows = 2,
           .in = 768,
           .norm = true,
           .weight_format = format,
           .mean = 1000.0F});
}

// Nothing but epsilon is left of the variance: the rows become the norm's bias.
TEST_P(Linear, LayernormOfConstantRows) {
  LinearTensors t(
      {.dtype = DType::kFloat32, .rows = 4, .in = 128, .norm = true, .mean = 3.0F, .deviation = 0.0F});
  const std::vector<double> want = reference::linear(t.params);
  cpu::linear(t.params);
  for (std::int64_t i = 0; i < t.out.size(); ++i)
    EXPECT_TRUE(std::fabs(t.out[i] - want[static_cast<std::size_t>(i)]) <= 1e-5) << i;
}

TEST_P(Linear, AnyNumberOfThreads) {
  const int own = omp_get_max_threads();
  for (const WeightFormat format : kFormats) {
    for (const std::int64_t rows : {std::int64_t{1}, kManyRows}) {
      LinearTensors t({.dtype = DType::kFloat32,
                       .rows = rows,
                       .in = 800,
                       .out_size = 80 * 64 + 1,  // more tasks than any of these has threads
                       .weight_format = format});
      std::vector<float> alone;
      for (const int threads : {1, 2, 3, 70}) {
        omp_set_num_threads(threads);
        for (std::int64_t i = 0; i < t.out.size(); ++i) t.out.set(i, std::numeric_limits<float>::quiet_NaN());
        cpu::linear(t.params);
        std::vector<float> found;
        for (std::int64_t i = 0; i < t.out.size(); ++i) found.push_back(static_cast<float>(t.out[i]));
        if (threads == 1) alone = found;
        EXPECT_EQ(found, alone) << threads << " threads";
      }
    }
  }
  omp_set_num_threads(own);
}

// Weights in rows are packed beside more than 12 rows, whose sums then go another way.
TEST_P(Linear, RowAloneOrInABatch) {
  for (const WeightFormat format : kFormats)
    for (const std::int64_t in : {800, 1600}) {
      const bool in_rows = format == WeightFormat::kFloat;
      const LinearCase c = {.dtype = DType::kFloat32,
                            .rows = in_rows ? 12 : 71,
                            .in = in,
                            .norm = true,
                            .weight_format = format};
      LinearTensors all(c);
      for (std::int64_t row = 0; row < c.rows; row += 5) all.x.set(row * in + 100, 50.0F);  // an outlier
      cpu::linear(all.params);
      for (const std::int64_t row : {0, 5, 11, 40, 69, 70}) {
        if (row >= c.rows) continue;
        LinearTensors alone(c);
        alone.params.x = static_cast<const float*>(all.params.x) + row * in;
        alone.params.rows = 1;
        cpu::linear(alone.params);
        for (std::int64_t i = 0; i < c.out_size; ++i)
          EXPECT_EQ(alone.out[i], all.out[row * c.out_size + i]) << row << " " << i;
      }
    }
}

TEST_P(Linear, RowsBesidePackedWeightsInBatchesOfAnySize) {
  for (const std::int64_t in : {800, 1600}) {
    LinearTensors all({.dtype = DType::kFloat32, .rows = 71, .in = in}),
        packed({.dtype = DType::kFloat32, .rows = 71, .in = in});
    packed.params.weight_format = WeightFormat::kFloatPanels;
    cpu::pack_weight(packed.weight.data(), {.out_size = packed.params.out_size, .in = in});
    cpu::linear(all.params);
    cpu::linear(packed.params);
    for (std::int64_t i = 0; i < all.out.size(); ++i) EXPECT_EQ(all.out[i], packed.out[i]) << i;
  }
}

// Products with codes are exact, and so the same in either order.
TEST_P(Linear, PackedCodesGiveTheBitsOfCodesInRows) {
  for (const bool fine : {false, true})
    for (const std::int64_t in : {200, 832, 3108})
      for (const std::int64_t out_size : {9, 90, 573})
        for (const std::int64_t rows : {1, 2, 7, 16, 29, 71}) {
          const LinearCase c = {.dtype = DType::kFloat32,
                                .rows = rows,
                                .in = in,
                                .out_size = out_size,
                                .weight_format = WeightFormat::kInt8Rows,
                                .fine_activations = fine};
          LinearTensors want(c), got(c);
          got.params.weight_format = WeightFormat::kInt8Panels;
          cpu::pack_weight(got.weight.data(),
                           {.panels = WeightFormat::kInt8Panels, .out_size = out_size, .in = in});
          for (LinearTensors* t : {&want, &got}) {
            for (std::int64_t row = 0; row < rows; row += 3)
              t->x.set(row * in + 100, 50.0F);  // a whole block
            cpu::linear(t->params);
          }
          SCOPED_TRACE(describe(c));
          for (std::int64_t i = 0; i < want.out.size(); ++i) ASSERT_EQ(got.out[i], want.out[i]) << i;
        }
}

// A task packs rows as the panels lie, and either way a product is the same chain of sums.
TEST_P(Linear, PackedInt4GivesTheBitsOfInt4InRows) {
  for (const std::int64_t in : {32, 96, 800, 3104})
    for (const std::int64_t out_size : {9, 90, 573})
      for (const std::int64_t rows : {1, 2, 7, 13, 71}) {
        const LinearCase c = {.dtype = DType::kFloat32,
                              .rows = rows,
                              .in = in,
                              .out_size = out_size,
                              .weight_format = WeightFormat::kInt4Groups};
        LinearTensors want(c), got(c);
        got.params.weight_format = WeightFormat::kInt4Panels;
        cpu::pack_weight(got.weight.data(),
                         {.panels = WeightFormat::kInt4Panels, .out_size = out_size, .in = in});
        cpu::pack_weight(got.weight_scale.data(),
                         {.dtype = DType::kFloat16, .out_size = out_size, .in = in / kInt4Group});
        for (LinearTensors* t : {&want, &got}) cpu::linear(t->params);
        SCOPED_TRACE(describe(c));
        for (std::int64_t i = 0; i < want.out.size(); ++i) ASSERT_EQ(got.out[i], want.out[i]) << i;
      }
}

TEST_P(Linear, StreamsFetchedAheadOrNot) {
  for (const WeightFormat format : kFormats)
    for (const std::int64_t rows : {1, 2})
      for (const std::int64_t out_size : {560, 573, 1100}) {
        const LinearCase c = {
            .dtype = DType::kFloat32, .rows = rows, .in = 768, .out_size = out_size, .weight_format = format};
        std::vector<float> alone;
        for (const bool intel : {false, true}) {
          const test::Maker maker(intel);
          check(c);
          LinearTensors t(c);
          cpu::linear(t.params);
          std::vector<float> found;
          for (std::int64_t i = 0; i < t.out.size(); ++i) found.push_back(static_cast<float>(t.out[i]));
          if (!intel) alone = found;
          EXPECT_EQ(found, alone) << describe(c);
        }
      }
}

TEST_P(Linear, MoreRowsThanScratchHolds) {
  for (const WeightFormat format : kFormats)
    check({.dtype = DType::kFloat16, .rows = 517, .in = 32, .norm = true, .weight_format = format});
}

TEST_P(Linear, OneDamagedRowSpoilsNoOther) {
  for (const WeightFormat format : kFormats)
    for (const float damage :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      for (const std::int64_t rows : {std::int64_t{5}, kManyRows}) {
        LinearTensors t({.dtype = DType::kFloat32, .rows = rows, .in = 64, .weight_format = format});
        t.x.set(64 + 5, damage);
        cpu::linear(t.params);
        for (std::int64_t i = 0; i < t.out.size(); ++i) EXPECT_EQ(std::isfinite(t.out[i]), i / 19 != 1) << i;
      }
    }
}

TEST_P(Linear, RowsOfZeros) {
  for (const WeightFormat format : kFormats) {
    for (const float tiny : {0.0F, 1e-42F})  // the latter: too small for steps of its own
      for (const std::int64_t rows : {std::int64_t{2}, kManyRows}) {
        LinearTensors t({.dtype = DType::kFloat32, .rows = rows, .in = 64, .weight_format = format});
        for (std::int64_t i = 0; i < 64; ++i) t.x.set(i, tiny);
        cpu::linear(t.params);
        for (std::int64_t i = 0; i < 19; ++i) EXPECT_EQ(t.out[i], t.bias[i]);
      }
  }
}

// Every code and every value at its end: sums are at their largest.
TEST_P(Linear, Int4CodesAtTheirEnds) {
  for (const WeightFormat format : kInt4Formats)
    for (const int code : {0x00, 0xff}) {
      LinearTensors t(
          {.dtype = DType::kFloat32, .rows = 5, .in = 416, .biases = false, .weight_format = format});
      std::fill(t.weight.bytes.begin(), t.weight.bytes.end(), static_cast<char>(code));
      for (std::int64_t i = 0; i < t.x.size(); ++i) t.x.set(i, i % 2 == 0 ? 2.0F : -2.0F);
      for (std::int64_t i = 0; i < t.x.size(); i += 32) t.x.set(i + 1, 2.0F);
      const std::vector<double> want = reference::linear(t.params);
      cpu::linear(t.params);
      for (std::size_t i = 0; i < want.size(); ++i)
        EXPECT_TRUE(std::fabs(t.out[static_cast<std::int64_t>(i)] - want[i]) <= 1e-5) << i << " " << want[i];
    }
}

TEST_P(Linear, GeluOverItsWholeRange) {
  for (const Epilogue epilogue : {Epilogue::kGeluTanh, Epilogue::kGeluExact}) {
    LinearTensors t({.dtype = DType::kFloat32, .in = 1, .out_size = 2001, .epilogue = epilogue});
    t.x.set(0, 0.0F);
    for (std::int64_t i = 0; i < 2001; ++i) t.bias.set(i, static_cast<float>(i - 1000) / 50.0F);
    const std::vector<double> want = reference::linear(t.params);
    cpu::linear(t.params);
    for (std::int64_t i = 0; i < 2001; ++i)
      EXPECT_TRUE(std::fabs(t.out[i] - want[static_cast<std::size_t>(i)]) <=
                  2e-7 * std::max(1.0, std::fabs(t.bias[i])))
          << t.bias[i] << ": got " << t.out[i] << ", want " << want[static_cast<std::size_t>(i)];
  }
}

TEST(PackedWeight, HoldsTheSameValues) {
  struct Packing {
    WeightFormat rows, panels;
    DType dtype;
  };
  for (const Packing& packing : {Packing{WeightFormat::kFloat, WeightFormat::kFloatPanels, DType::kFloat32},
                                 {WeightFormat::kFloat, WeightFormat::kFloatPanels, DType::kFloat16},
                                 {WeightFormat::kFloat, WeightFormat::kFloatPanels, DType::kBFloat16},
                                 {WeightFormat::kInt8Rows, WeightFormat::kInt8Panels, DType::kFloat32},
                                 {WeightFormat::kInt4Groups, WeightFormat::kInt4Panels, DType::kFloat32}})
    for (const std::int64_t out_size : {1, 15, 16, 17, 70})
      for (const std::int64_t in : has_int4_codes(packing.rows) ? std::vector<std::int64_t>{32, 96}
                                                                : std::vector<std::int64_t>{4, 24, 100}) {
        const LinearCase c = {
            .dtype = packing.dtype, .in = in, .out_size = out_size, .weight_format = packing.rows};
        const LinearTensors t(c);
        LinearTensors packed(c);
        packed.params.weight_format = packing.panels;
        const PanelMatrix matrix = {
            .panels = packing.panels, .dtype = packing.dtype, .out_size = out_size, .in = in};
        cpu::pack_weight(packed.weight.data(), matrix);
        if (has_int4_codes(packing.rows))
          cpu::pack_weight(packed.weight_scale.data(),
                           {.dtype = DType::kFloat16, .out_size = out_size, .in = in / kInt4Group});
        EXPECT_EQ(reference::weight_values(packed.params), reference::weight_values(t.params));
        const std::size_t bytes = t.weight.bytes.size() / static_cast<std::size_t>(out_size);
        std::vector<char> row(bytes);
        for (std::int64_t o = 0; o < out_size; ++o) {
          cpu::unpack_row(packed.weight.data(), matrix, o, row.data());
          const auto first = t.weight.bytes.begin() + o * static_cast<std::int64_t>(bytes);
          EXPECT_TRUE(std::equal(row.begin(), row.end(), first)) << out_size << " " << in << " " << o;
        }
      }
}

INSTANTIATE_TEST_SUITE_P(Isas, Linear, test::every_isa(), test::isa_of);

}  // namespace
}  // namespace kvfuse
