// The CPU's decode step on every instruction set of this machine, against its double-precision twin.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

#include "tests/cpp/isa_fixture.h"
#include "tests/cpp/step_fixture.h"

namespace kvfuse {
namespace {

using test::kBlockSize;
using test::kSteps;
using test::kVocab;
using test::StepCase;

// How far logits of a few units may be from the twin's, which rounds rows and activations as the step does.
// What float32 tips over to the next code of an int8 cache moves a logit by some hundredths.
double tolerance(const StepCase& c) {
  const bool narrow = c.dtype != DType::kFloat32, int8_cache = c.cache_dtype == DType::kInt8;
  const double of_rows = (narrow ? 0.01 : 2e-5) + (int8_cache ? 0.05 : 0.0);
  switch (c.weights) {
    case WeightFormat::kFloat:
    case WeightFormat::kFloatPanels:
      return of_rows;
    case WeightFormat::kInt8Rows:
    case WeightFormat::kInt8Panels:
      // A row or a code that is tipped over tips over codes of the activations behind it, each a larger step.
      return of_rows + (narrow || int8_cache ? 0.3 : 1e-3);
    case WeightFormat::kInt4Groups:
    case WeightFormat::kInt4Panels:
      return of_rows + 0.6;  // the twin does not round to 8 bits beside them
  }
  return 0.0;
}

class DecodeStep : public test::OnIsa {
 protected:
  static void check(const StepCase& c) {
    SCOPED_TRACE(describe(c));
    test::Generation g(c);
    g.give_workspace(cpu::decode_step_workspace_bytes(g.params));
    std::set<std::int64_t> chosen;
    for (int step = 0; step < kSteps; ++step) {
      const std::vector<std::int64_t> tokens = g.tokens;
      const std::vector<std::int32_t> lengths = g.cache_seqlens;
      cpu::decode_step(g.params);
      EXPECT_EQ(g.tokens, tokens);  // the caller's to change
      EXPECT_EQ(g.cache_seqlens, lengths);
      for (std::size_t b = 0; b < tokens.size(); ++b) {
        const std::vector<double> want = g.model.twin.step(tokens[b], g.twin_caches[b]);
        for (std::size_t i = 0; i < want.size(); ++i)
          ASSERT_TRUE(std::fabs(g.logits[b * kVocab + i] - want[i]) <= tolerance(c))  // false for NaN
              << "step " << step << ", sequence " << b << ", logit " << i << ": " << g.logits[b * kVocab + i]
              << ", not " << want[i];
        g.tokens[b] = std::max_element(want.begin(), want.end()) - want.begin();
        ++g.cache_seqlens[b];
        chosen.insert(g.tokens[b]);
      }
    }
    EXPECT_GE(chosen.size(), 3U);
  }
};

TEST_P(DecodeStep, FollowsTheTwin) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (const bool int8_cache : {false, true})
      for (const bool follower : {false, true})
        for (const WeightFormat weights :
             {WeightFormat::kFloat, WeightFormat::kFloatPanels, WeightFormat::kInt8Rows,
              WeightFormat::kInt8Panels, WeightFormat::kInt4Groups, WeightFormat::kInt4Panels}) {
          StepCase c{.dtype = dtype,
                     .cache_dtype = int8_cache ? DType::kInt8 : dtype,
                     .follower = follower,
                     .weights = weights};
          check(c);
          c.lengths = {0, 9, 3};
          check(c);
        }
}

TEST_P(DecodeStep, OtherModels) { check({.lengths = {4}, .biases = false, .gelu_tanh = false}); }

TEST_P(DecodeStep, ASequenceAloneHasTheSameBits) {
  for (const WeightFormat weights :
       {WeightFormat::kFloat, WeightFormat::kFloatPanels, WeightFormat::kInt8Rows, WeightFormat::kInt8Panels,
        WeightFormat::kInt4Groups, WeightFormat::kInt4Panels}) {
    const StepCase c{.cache_dtype = has_codes(weights) ? DType::kInt8 : DType::kFloat32, .weights = weights};
    StepCase batch = c;
    batch.lengths = {3, 9, 0, 1, 2};
    test::Generation all(batch), alone(c);
    all.give_workspace(cpu::decode_step_workspace_bytes(all.params));
    cpu::decode_step(all.params);
    alone.give_workspace(cpu::decode_step_workspace_bytes(alone.params));
    alone.tokens[0] = all.tokens[2];
    cpu::decode_step(alone.params);
    for (std::size_t i = 0; i < kVocab; ++i) EXPECT_EQ(alone.logits[i], all.logits[2 * kVocab + i]) << i;
  }
}

TEST_P(DecodeStep, OutsideTheTablesIsNaN) {
  for (const WeightFormat weights :
       {WeightFormat::kFloat, WeightFormat::kFloatPanels, WeightFormat::kInt8Panels}) {
    test::Generation g({.lengths = {3, 2}, .weights = weights});
    g.give_workspace(cpu::decode_step_workspace_bytes(g.params));
    g.tokens[0] = kVocab;
    cpu::decode_step(g.params);
    for (std::size_t i = 0; i < 2 * kVocab; ++i) EXPECT_EQ(std::isnan(g.logits[i]), i < kVocab) << i;
  }
}

TEST_P(DecodeStep, RefusesCachesThatDoNotFit) {
  const auto refused = [](auto&& change) {
    test::Generation g({.lengths = {3, 2}});
    g.give_workspace(cpu::decode_step_workspace_bytes(g.params));
    change(g);
    try {
      cpu::decode_step(g.params);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  EXPECT_FALSE(refused([](test::Generation&) {}));
  EXPECT_TRUE(refused([](test::Generation& g) { g.params.batch = 1; }));
  EXPECT_TRUE(refused([](test::Generation& g) { g.params.n_head = 3; }));
  EXPECT_TRUE(refused([](test::Generation& g) { g.params.workspace = nullptr; }));
  EXPECT_TRUE(refused([](test::Generation& g) { g.model.layers[1].cache_layer = 2; }));
  EXPECT_TRUE(refused([](test::Generation& g) { g.model.layers[1].cache_layer = -1; }));
}

INSTANTIATE_TEST_SUITE_P(Isas, DecodeStep, test::every_isa(), test::isa_of);

}  // namespace
}  // namespace kvfuse
