// The CUDA kernel of prefill attention, emulated.
#include "kernels/cuda/prefill_attention.cu"

#include <gtest/gtest.h>

#include <cfloat>
#include <tuple>

#include "tests/cuda_emulation/prefill_check.h"

namespace kvfuse::test {
namespace {

Case small_case(DType query, bool int8) {
  return {.query_dtype = query,
          .cache_dtype = int8 ? DType::kInt8 : query,
          .lengths = {5},
          .kv_heads = 1,
          .q_len = 40};
}

// Changes element d of new token t of kv head 0 of sequence 0.
void set_new(const ConstTokenView& view, std::int64_t t, std::int64_t d, float value) {
  void* data = const_cast<void*>(view.data);
  const std::int64_t at = t * view.token_stride + d;
  if (view.dtype == DType::kFloat32) static_cast<float*>(data)[at] = value;
  if (view.dtype == DType::kBFloat16) static_cast<BFloat16*>(data)[at] = from_float<BFloat16>(value);
  if (view.dtype == DType::kFloat16) static_cast<Float16*>(data)[at] = from_float<Float16>(value);
}

float get_new(const ConstTokenView& view, std::int64_t t, std::int64_t d) {
  return static_cast<float>(reference::element(view.data, view.dtype, t * view.token_stride + d));
}

using Configuration = std::tuple<DType, bool, std::int64_t>;

class PrefillAttention : public ::testing::TestWithParam<Configuration> {
 protected:
  static DType query() { return std::get<0>(GetParam()); }
  static bool int8() { return std::get<1>(GetParam()); }
  static std::int64_t head_dim() { return std::get<2>(GetParam()); }
};

TEST_P(PrefillAttention, LengthsAndPromptLengths) {
  for (const std::int64_t q_len : {1, 31, 64, 65, 257}) {
    Case c = small_case(query(), int8());
    c.head_dim = head_dim();
    c.q_len = q_len;
    c.lengths = {0, 5, 64};
    check(c);
  }
}

std::string name_of(const ::testing::TestParamInfo<Configuration>& info) {
  return std::string(dtype_name(std::get<0>(info.param))) + (std::get<1>(info.param) ? "_int8_" : "_own_") +
         std::to_string(std::get<2>(info.param));
}

const auto kQueryTypes = ::testing::Values(DType::kFloat32, DType::kBFloat16, DType::kFloat16);

INSTANTIATE_TEST_SUITE_P(All, PrefillAttention,
                         ::testing::Combine(kQueryTypes, ::testing::Bool(),
                                            ::testing::Values(64, 80, 96, 128)),
                         name_of);

// What does not depend on the head size.
class PrefillAttentionAtOneSize : public PrefillAttention {};
INSTANTIATE_TEST_SUITE_P(All, PrefillAttentionAtOneSize,
                         ::testing::Combine(kQueryTypes, ::testing::Bool(), ::testing::Values(64)), name_of);

TEST_P(PrefillAttentionAtOneSize, GroupedQueriesAndMixedLengths) {
  Case c = small_case(query(), int8());
  c.lengths = {70, 0, 3};
  c.kv_heads = 2;
  c.group = 3;
  check(c);
}

TEST_P(PrefillAttentionAtOneSize, AttendsWithoutAppending) {
  Case c = small_case(query(), int8());
  c.append = false;
  c.lengths = {0, 3, 40, 100};  // fewer than queries: the first see no token
  c.group = 2;
  Fixture fixture(c);
  check(fixture.params, c);
  const std::vector<double> result = result_of(fixture.params);
  for (std::int64_t i = 0; i < 2 * 40 * 64; ++i) ASSERT_EQ(result[static_cast<std::size_t>(i)], 0.0);
}

TEST_P(PrefillAttentionAtOneSize, RowsAnywhere) {
  Case c = small_case(query(), int8());
  c.lengths = {0, 60};
  c.kv_heads = 2;
  c.group = 2;
  Fixture fixture(c);
  const Scattered scattered(fixture.params);
  check(fixture.params, c);
  scattered.expect_gaps_untouched(fixture.params);
}

TEST_P(PrefillAttentionAtOneSize, OneTokenTakesAll) {
  Case c = small_case(query(), int8());
  Fixture fixture(c);
  for (std::int64_t d = 0; d < c.head_dim; ++d)
    for (std::int64_t t = 0; t < c.q_len; ++t) {
      set_new(fixture.params.k_new, t, d, t == 17 ? 20.0F : 0.1F);
      set_new(fixture.params.q, t, d, 4.0F);
    }
  check(fixture.params, c);
  const std::vector<double> result = result_of(fixture.params);
  for (std::int64_t d = 0; d < c.head_dim; ++d)
    EXPECT_EQ(result[static_cast<std::size_t>(39 * c.head_dim + d)],
              result[static_cast<std::size_t>(20 * c.head_dim + d)]);
}

TEST_P(PrefillAttentionAtOneSize, ScalesOfEverySize) {
  // Powers of two within the query's range, in an order that makes the largest V come early, late and last.
  const float most = query() == DType::kFloat16 ? 0x1p9F : 0x1p40F;
  for (const bool falling : {false, true}) {
    Case c = small_case(query(), int8());
    c.q_len = 90;
    Fixture fixture(c);
    for (std::int64_t t = 0; t < c.q_len; ++t)
      for (std::int64_t d = 0; d < c.head_dim; ++d) {
        const float step =
            static_cast<float>(falling ? c.q_len - 1 - t : t) / static_cast<float>(c.q_len - 1);
        const float v = get_new(fixture.params.v_new, t, d);
        set_new(fixture.params.v_new, t, d, v * std::exp2((2.0F * step - 1.0F) * std::log2(most)));
        set_new(fixture.params.k_new, t, d, t % 7 == 0 ? 0.0F : get_new(fixture.params.k_new, t, d));
      }
    check(fixture.params, c);
  }
}

TEST_P(PrefillAttentionAtOneSize, ZeroRows) {
  Case c = small_case(query(), int8());
  c.lengths = {0};
  Fixture fixture(c);
  for (std::int64_t t = 0; t < c.q_len; ++t)
    for (std::int64_t d = 0; d < c.head_dim; ++d) {
      if (t % 2 == 0) set_new(fixture.params.q, t, d, 0.0F);
      if (t < 20) set_new(fixture.params.v_new, t, d, 0.0F);
    }
  check(fixture.params, c);
  const std::vector<double> result = result_of(fixture.params);
  for (std::int64_t i = 0; i < 20 * c.head_dim; ++i) ASSERT_EQ(result[static_cast<std::size_t>(i)], 0.0);
}

TEST_P(PrefillAttentionAtOneSize, WrongLengthsGiveNaNAndWriteNothing) {
  Case c = small_case(query(), int8());
  c.lengths = {5, 9, 7, 8, 6};
  c.spare = 0;  // the 9 old tokens and the new ones fill the cache
  Fixture fixture(c);
  const std::vector<std::int32_t> lengths = {-1, 9, 10, INT_MIN, INT_MAX};
  fixture.params.cache_seqlens = lengths.data();
  run(fixture.params);
  const std::vector<double> result = result_of(fixture.params);
  const std::size_t one = static_cast<std::size_t>(c.q_len * c.head_dim);
  for (std::size_t i = 0; i < result.size(); ++i) ASSERT_EQ(std::isnan(result[i]), i / one != 1) << i;
}

// What only codes and scales are subject to.
class PrefillAttentionOverInt8 : public PrefillAttention {};
INSTANTIATE_TEST_SUITE_P(All, PrefillAttentionOverInt8,
                         ::testing::Combine(kQueryTypes, ::testing::Values(true), ::testing::Values(64)),
                         name_of);

TEST_P(PrefillAttentionOverInt8, DamagedTokenHarmsThoseWhoSeeIt) {
  for (const bool in_v : {false, true})
    for (const float damage : {kNan, -INFINITY}) {
      const Case c = small_case(query(), true);
      Fixture fixture(c);
      set_new(in_v ? fixture.params.v_new : fixture.params.k_new, 23, 9, damage);
      run(fixture.params);
      const std::vector<double> result = result_of(fixture.params);
      for (std::size_t i = 0; i < result.size(); ++i)
        ASSERT_EQ(std::isnan(result[i]), i / static_cast<std::size_t>(c.head_dim) >= 23)
            << i << (in_v ? " V " : " K ") << damage;
    }
}

TEST_P(PrefillAttentionOverInt8, CodesAtTies) {
  Case c = small_case(query(), true);
  c.q_len = 12;
  Fixture fixture(c);
  const float unit[] = {1.0F, 0x1p-6F, 3.0F, 0x1.8p-9F};
  for (std::int64_t t = 0; t < c.q_len; ++t)
    for (std::int64_t d = 0; d < c.head_dim; ++d) {
      float x = static_cast<float>(d * 2) - 63.5F;  // a tie when the scale is the unit
      if (t % 3 == 1) x = std::nextafter(x, INFINITY);
      if (t % 3 == 2) x = std::nextafter(x, -INFINITY);
      if (d == 0) x = 127.0F;
      for (const ConstTokenView* view : {&fixture.params.k_new, &fixture.params.v_new})
        set_new(*view, t, d, x * unit[t % 4]);
    }
  for (std::int64_t d = 0; d < c.head_dim; ++d) {  // the quotient of a subnormal scale passes 127
    set_new(fixture.params.v_new, 0, d, static_cast<float>(190 - d) * FLT_TRUE_MIN);
    set_new(fixture.params.v_new, 1, d, static_cast<float>(190 - d) * 0x1p-133F);
    set_new(fixture.params.v_new, 2, d, static_cast<float>(190 - d) * 0x1p-24F);
  }
  run(fixture.params);
}

TEST(PrefillAttention, ThousandTokens) {
  Case c = small_case(DType::kFloat16, true);
  c.q_len = 1000;
  check(c);
}

TEST(PrefillAttention, Float32IsNoWorseThanFloat32) {
  Case c = small_case(DType::kFloat32, false);
  c.lengths = {0};
  c.q_len = 200;
  Fixture fixture(c);
  run(fixture.params);
  const std::vector<double> want = reference::attention(fixture.params);
  const std::vector<double> got = result_of(fixture.params);
  const std::vector<float> plain = plain_attention(fixture.params);
  double ours = 0.0;
  double theirs = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    ours += (got[i] - want[i]) * (got[i] - want[i]);
    theirs += (plain[i] - want[i]) * (plain[i] - want[i]);
  }
  EXPECT_TRUE(ours <= 4.0 * theirs) << std::sqrt(ours / theirs) << " times the error of the plain algorithm";
  RecordProperty("ratio", std::to_string(std::sqrt(ours / theirs)));
}

TEST(PrefillAttention, NegativeScaleOfTheSoftmax) {
  Case c = small_case(DType::kFloat16, true);
  Fixture fixture(c);
  fixture.params.softmax_scale = -0.5F;
  check(fixture.params, c);
}

TEST(PrefillAttention, RefusesWhatItIsNotCompiledFor) {
  Case c = small_case(DType::kFloat32, true);
  c.head_dim = 48;
  EXPECT_EQ(cuda::prefill_attention(Fixture(c).params, nullptr), cudaErrorInvalidValue);
  c.head_dim = 64;
  c.cache_dtype = DType::kBFloat16;
  EXPECT_EQ(cuda::prefill_attention(Fixture(c).params, nullptr), cudaErrorInvalidValue);
  Fixture int8_query(small_case(DType::kFloat32, true));
  int8_query.params.q.dtype = DType::kInt8;
  EXPECT_EQ(cuda::prefill_attention(int8_query.params, nullptr), cudaErrorInvalidValue);
  Fixture endless(small_case(DType::kFloat32, true));
  endless.params.cache.capacity = std::int64_t{1} << 31;
  EXPECT_EQ(cuda::prefill_attention(endless.params, nullptr), cudaErrorInvalidValue);
}

TEST(PrefillAttention, NothingToDo) {
  Fixture fixture(small_case(DType::kFloat32, true));
  fixture.params.q_len = 0;
  const CacheBytes before = copy_cache(fixture.params.cache);
  EXPECT_EQ(cuda::prefill_attention(fixture.params, nullptr), cudaSuccess);
  EXPECT_TRUE(same_bits(copy_cache(fixture.params.cache), before));
}

TEST(PrefillAttention, ReadsTheCacheInWholeLines) {
  Case c = small_case(DType::kFloat16, false);
  c.lengths = {128};
  c.q_len = 64;
  c.append = false;
  Fixture fixture(c);
  emulation::set_options({1});
  emulation::reset_load_counts();
  ASSERT_EQ(cuda::prefill_attention(fixture.params, nullptr), cudaSuccess);
  const char* cache = static_cast<const char*>(fixture.params.cache.k);
  const auto first = reinterpret_cast<std::uintptr_t>(cache);
  const std::uintptr_t bytes = static_cast<std::uintptr_t>(fixture.params.cache.capacity * 64 * 2);
  int loads = 0;
  for (const emulation::WarpLoad& load : emulation::load_counts().loads) {
    if (load.first < first || load.first >= first + bytes) continue;
    ++loads;
    EXPECT_EQ(load.contiguous_bytes, 512);
    EXPECT_EQ(load.lanes, 32);
  }
  emulation::reset_load_counts(false);
  EXPECT_EQ(loads, 128 * 128 / 512);  // each row once
}

}  // namespace
}  // namespace kvfuse::test
