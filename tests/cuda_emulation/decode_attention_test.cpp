// Decode attention and kv_append as CUDA kernels, run by the emulator, against the double-precision twins.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cuda/decode_attention.cu"
#include "kernels/cuda/kv_append.cu"
#include "tests/cuda_emulation/attention_fixture.h"

namespace kvfuse::cuda {
namespace {

using test::Case;
using test::describe;
using test::Fixture;
using test::relative_error;
using test::tolerance;

// The emulator orders a launch's threads in three ways; three consecutive seeds meet them all.
constexpr std::uint64_t kSeeds = 3;

std::int64_t query_rows(const AttentionParams& a) { return a.heads / a.cache.kv_heads * a.q_len; }

// Zero counters; the rest is NaN, so that a partial result that nobody wrote shows.
class Workspace {
 public:
  Workspace(const AttentionParams& a, std::int64_t splits)
      : counters_(static_cast<std::size_t>(a.cache.batch * a.cache.kv_heads * row_tiles(query_rows(a)))),
        data_(static_cast<std::size_t>(decode_workspace_bytes(a.cache.batch, a.cache.kv_heads, query_rows(a),
                                                              a.cache.head_dim, splits)),
              static_cast<char>(0)) {
    forget_parts();
  }
  void* data() { return data_.data(); }
  void forget_parts() {
    std::fill(data_.begin() + static_cast<std::ptrdiff_t>(counters_ * 4), data_.end(),
              static_cast<char>(0xff));
  }
  bool counters_are_zero() const {
    return std::all_of(data_.begin(), data_.begin() + static_cast<std::ptrdiff_t>(counters_ * 4),
                       [](char byte) { return byte == 0; });
  }

 private:
  std::size_t counters_;
  std::vector<char> data_;
};

using Launch = cudaError_t (*)(const AttentionParams&, const DecodeOptions&, cudaStream_t);

// Runs the kernel on the fixture's tensors in the order of threads that `seed` stands for.
void run(Fixture& f, std::int64_t splits, std::uint64_t seed, DecodeOptions options = {},
         Launch launch_kernel = decode_attention) {
  emulation::set_options({.seed = seed});
  Workspace workspace(f.params, splits);
  options.splits = splits;
  options.workspace = workspace.data();
  for (int call = 0; call < 2; ++call) {  // the second call finds the counters as the first left them
    std::memset(f.params.out.data, 0xff, f.out_bytes().size());
    workspace.forget_parts();
    ASSERT_EQ(launch_kernel(f.params, options, nullptr), cudaSuccess) << emulation::last_error();
  }
  EXPECT_TRUE(workspace.counters_are_zero());
}

void expect_twin(const Fixture& f, const Case& c) {
  const double error = relative_error(f.result(), reference::attention(f.params));
  EXPECT_TRUE(error <= tolerance(c.query_dtype, c.cache_dtype)) << "error " << error;
  f.expect_softmax_lse(tolerance(DType::kFloat32, c.cache_dtype));
}

// Everything that kv_append or decode attention may change, without the rows that they are to change.
std::vector<char> bytes_beside_new_rows(const Fixture& f, const Case& c) {
  const CacheView& cache = f.params.cache;
  std::vector<char> kept;
  const auto keep = [&](const void* data, std::int64_t row_bytes) {
    if (data == nullptr) return;
    for (std::int64_t row = 0; row < cache.batch * cache.kv_heads * cache.capacity; ++row) {
      const std::int64_t position = row % cache.capacity;
      const std::int64_t length = c.lengths[static_cast<std::size_t>(row / cache.capacity / cache.kv_heads)];
      if (c.append && position >= length && position < length + c.q_len) continue;
      const char* const bytes = static_cast<const char*>(data) + row * row_bytes;
      kept.insert(kept.end(), bytes, bytes + row_bytes);
    }
  };
  keep(cache.k, cache.head_dim * element_bytes(cache.dtype));
  keep(cache.v, cache.head_dim * element_bytes(cache.dtype));
  keep(cache.k_scale, sizeof(float));
  keep(cache.v_scale, sizeof(float));
  return kept;
}

// Three schedules: each close to the twin, all with the same bits, and nothing changed but the new rows.
void check(const Case& c, std::int64_t splits) {
  SCOPED_TRACE(describe(c) + ", splits " + std::to_string(splits));
  std::vector<char> first;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Fixture f(c);
    const std::vector<char> before = bytes_beside_new_rows(f, c);
    ASSERT_NO_FATAL_FAILURE(run(f, splits, seed));
    EXPECT_TRUE(bytes_beside_new_rows(f, c) == before);
    if (seed == 0) {
      if (c.append) f.expect_appended();
      expect_twin(f, c);
      first = f.out_bytes();
    }
    EXPECT_TRUE(f.out_bytes() == first) << "seed " << seed << " gives other bits than seed 0";
  }
}

class Decode : public testing::TestWithParam<std::tuple<DType, bool, std::int64_t>> {};

TEST_P(Decode, EveryLengthAndSplit) {
  const auto [dtype, is_int8, head_dim] = GetParam();
  for (const std::int32_t length : {1, 31, 64, 65, 257, 1000})
    for (const std::int64_t splits : {1, 3, 8}) {
      if (length < 257 && splits == 8) continue;  // one split is all that such a length gets
      check({.query_dtype = dtype,
             .cache_dtype = is_int8 ? DType::kInt8 : dtype,
             .lengths = {length},
             .kv_heads = 1,
             .head_dim = head_dim,
             .append = splits != 3 || length == 257},
            splits);
    }
}

TEST_P(Decode, GroupedQueriesAndSeveralTokens) {
  const auto [dtype, is_int8, head_dim] = GetParam();
  for (const bool append : {true, false})
    for (const auto& [group, q_len] : {std::pair{3, 1}, {1, 5}, {2, 3}})
      check({.query_dtype = dtype,
             .cache_dtype = is_int8 ? DType::kInt8 : dtype,
             .lengths = {2, 0, 301},
             .kv_heads = group == 3 ? 2 : 1,
             .group = group,
             .q_len = q_len,
             .head_dim = head_dim,
             .append = append},
            2);
}

INSTANTIATE_TEST_SUITE_P(Emulated, Decode,
                         testing::Combine(testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                                          testing::Bool(), testing::Values(64, 80, 96, 128)),
                         [](const auto& info) {
                           return std::string(dtype_name(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) ? "_int8_" : "_") +
                                  std::to_string(std::get<2>(info.param));
                         });

TEST(DecodeAttention, ManyQueryTokens) {
  for (const DType cache : {DType::kInt8, DType::kFloat32})
    for (const bool append : {true, false})
      check({.cache_dtype = cache, .lengths = {130, 20}, .kv_heads = 1, .q_len = 18, .append = append}, 2);
}

TEST(DecodeAttention, MixedLengthsAndHeads) {
  for (const DType cache : {DType::kInt8, DType::kFloat32})
    check({.cache_dtype = cache, .lengths = {700, 0, 128, 129, 255}, .kv_heads = 2}, 4);
}

// More splits than threads that share the merging of a channel, and more than they load at once.
TEST(DecodeAttention, ManySplits) {
  for (const std::int64_t group : {1, 4})
    for (const std::int64_t head_dim : {64, 128})
      check({.query_dtype = DType::kFloat16,
             .lengths = {1500},
             .kv_heads = 1,
             .group = group,
             .head_dim = head_dim},
            12);
}

TEST(DecodeAttention, QueriesThatSeeNothingGiveZeros) {
  for (const DType cache : {DType::kInt8, DType::kFloat32}) {
    const Case c{.cache_dtype = cache, .lengths = {0, 2}, .kv_heads = 1, .q_len = 3, .append = false};
    Fixture f(c);
    ASSERT_NO_FATAL_FAILURE(run(f, 1, 0));
    const std::vector<double> got = f.result();
    for (std::size_t i = 0; i < 4 * 64; ++i) ASSERT_EQ(got[i], 0.0);  // and the first token of the second
    expect_twin(f, c);
  }
}

TEST(DecodeAttention, ImpossibleLengthsGiveNanAndLeaveTheCache) {
  for (const DType cache : {DType::kInt8, DType::kFloat16})
    for (const std::int64_t group : {1, 6}) {
      const Case c{.query_dtype = DType::kFloat16,
                   .cache_dtype = cache,
                   .lengths = {5, 7, 300},
                   .kv_heads = 1,
                   .group = group};
      Fixture f(c);
      const std::vector<char> before = f.cache_bytes();
      const std::int32_t lengths[] = {-1, static_cast<std::int32_t>(f.params.cache.capacity), 2147483647};
      f.params.cache_seqlens = lengths;
      std::fill_n(f.params.softmax_lse, f.softmax_lse().size(), 0.0F);
      ASSERT_NO_FATAL_FAILURE(run(f, 3, 1));
      for (const double value : f.result()) ASSERT_TRUE(std::isnan(value));
      for (const float value : f.softmax_lse()) ASSERT_TRUE(std::isnan(value));
      EXPECT_TRUE(f.cache_bytes() == before);
      EXPECT_EQ(kv_append({f.params.k_new, f.params.v_new, f.params.cache, lengths, 1}, nullptr),
                cudaSuccess);
      EXPECT_TRUE(f.cache_bytes() == before);
    }
}

TEST(DecodeAttention, FullCapacityIsPossible) {
  for (const DType cache : {DType::kInt8, DType::kFloat32})
    check({.cache_dtype = cache, .lengths = {255}, .kv_heads = 1, .spare = 0}, 2);
}

// With a bias the bits are those of a call on tensors that a kernel before has added it to.
TEST(DecodeAttention, Bias) {
  const std::int64_t kv_heads = 2, group = 2, head_dim = 64;
  for (const DType cache : {DType::kInt8, DType::kFloat16}) {
    const Case c{.query_dtype = DType::kFloat16,
                 .cache_dtype = cache,
                 .lengths = {200, 3},
                 .kv_heads = kv_heads,
                 .group = group,
                 .q_len = 2};
    std::vector<Float16> biases[3];
    for (int i = 0; i < 3; ++i)
      for (std::int64_t d = 0; d < (i == 0 ? group : 1) * kv_heads * head_dim; ++d)
        biases[i].push_back(from_float<Float16>(0.01F * static_cast<float>((d * 37 + i * 11) % 101 - 50)));

    Fixture fused(c);
    DecodeOptions options;
    options.q_bias = biases[0].data();
    options.k_bias = biases[1].data();
    options.v_bias = biases[2].data();
    ASSERT_NO_FATAL_FAILURE(run(fused, 2, 0, options));

    Fixture apart(c);
    const ConstTokenView views[] = {apart.params.q, apart.params.k_new, apart.params.v_new};
    for (int i = 0; i < 3; ++i)
      for (std::int64_t b = 0; b < 2; ++b)
        for (std::int64_t t = 0; t < c.q_len; ++t)
          for (std::int64_t d = 0; d < static_cast<std::int64_t>(biases[i].size()); ++d) {
            auto* const row = static_cast<Float16*>(const_cast<void*>(views[i].data)) +
                              b * views[i].batch_stride + t * views[i].token_stride;
            row[d] = from_float<Float16>(to_float(row[d]) + to_float(biases[i][static_cast<std::size_t>(d)]));
          }
    ASSERT_NO_FATAL_FAILURE(run(apart, 2, 0));
    apart.expect_appended();
    EXPECT_TRUE(fused.out_bytes() == apart.out_bytes());
    EXPECT_TRUE(fused.cache_bytes() == apart.cache_bytes());
    EXPECT_FALSE(std::isnan(fused.result()[0]));
  }
}

// A weight is a half in units of the largest, so V's scales may be anything.
TEST(DecodeAttention, TinyAndHugeScalesOfV) {
  for (const float factor : {1e-36F, 1e-20F, 1e20F, 1e32F}) {
    SCOPED_TRACE(factor);
    const Case c{.lengths = {300}, .kv_heads = 1, .append = false};
    Fixture f(c);
    for (std::int64_t i = 0; i < f.params.cache.capacity; ++i) f.params.cache.v_scale[i] *= factor;
    ASSERT_NO_FATAL_FAILURE(run(f, 2, 0));
    expect_twin(f, c);
  }
}

TEST(DecodeAttention, RowsOfZeros) {
  const Case c{.lengths = {300}, .kv_heads = 1};
  Fixture f(c);
  for (std::int64_t i = 0; i < f.params.cache.capacity; ++i)
    if (i % 3 != 0 || i < 40) f.params.cache.v_scale[i] = 0.0F;
  for (const ConstTokenView& view : {f.params.k_new, f.params.v_new})
    std::memset(const_cast<void*>(view.data), 0, 64 * sizeof(float));
  ASSERT_NO_FATAL_FAILURE(run(f, 2, 0));
  f.expect_appended();
  expect_twin(f, c);
}

// A damaged token shows in the queries that see it, and in no other.
TEST(DecodeAttention, NanReachesOnlyTheQueriesThatSeeIt) {
  for (const DType cache : {DType::kInt8, DType::kFloat32})
    for (const bool append : {true, false}) {
      SCOPED_TRACE(std::string(dtype_name(cache)) + (append ? ", append" : ""));
      const Case c{.cache_dtype = cache, .lengths = {70}, .kv_heads = 1, .q_len = 3, .append = append};
      Fixture f(c);
      if (append) {
        auto* const v = static_cast<float*>(const_cast<void*>(f.params.v_new.data));
        v[2 * f.params.v_new.token_stride + 7] = INFINITY;
      } else if (cache == DType::kInt8) {
        f.params.cache.v_scale[69] = test::kNan;
      } else {
        // K too: a token whose weight is exactly 0 does not show, whatever its V is
        for (void* const side : {f.params.cache.k, f.params.cache.v})
          std::fill_n(static_cast<float*>(side) + 69 * 64, 64, test::kNan);
      }
      ASSERT_NO_FATAL_FAILURE(run(f, 1, 0));
      const std::vector<double> got = f.result();
      for (std::size_t i = 0; i < 2 * 64; ++i) ASSERT_FALSE(std::isnan(got[i]));
      const std::size_t spoilt = 2 * 64 + 7;
      EXPECT_FALSE(std::isfinite(got[spoilt]));
    }
}

// IntegerCodes multiplies with the query in 16 bits: hardly worse than with the query in float32.
TEST(DecodeAttention, SixteenBitQueryCostsLittle) {
  const Case c{.lengths = {500}, .kv_heads = 2};
  Fixture integer(c), floating(c);
  ASSERT_NO_FATAL_FAILURE(run(integer, 2, 0));
  ASSERT_NO_FATAL_FAILURE(run(floating, 2, 0, {}, launch_decode<FloatQueryCodes, 64, 1>));
  expect_twin(floating, c);
  EXPECT_TRUE(relative_error(integer.result(), floating.result()) <= 1e-3);
  EXPECT_FALSE(integer.out_bytes() == floating.out_bytes());
}

TEST(DecodeAttention, WarpsLoadContiguousRows) {
  for (const std::int64_t head_dim : {64, 80, 96, 128}) {
    Fixture f({.lengths = {256}, .kv_heads = 1, .head_dim = head_dim, .append = false});
    emulation::reset_load_counts();
    emulation::set_options({.seed = 0});
    ASSERT_EQ(decode_attention(f.params, {}, nullptr), cudaSuccess) << emulation::last_error();
    const emulation::LoadCounts counts = emulation::load_counts();
    emulation::reset_load_counts(false);
    const int rows = 32 / static_cast<int>(std::bit_ceil(static_cast<unsigned>(head_dim / 16)));
    EXPECT_EQ(counts.loads.size(), static_cast<std::size_t>(2 * 256 / rows));
    for (const emulation::WarpLoad& load : counts.loads) {
      EXPECT_EQ(load.contiguous_bytes, rows * head_dim);  // 512 for head size 64
      EXPECT_EQ(load.lanes, 32);
    }
  }
}

TEST(DecodeAttention, SplitsFillTheCard) {
  EXPECT_EQ(decode_splits(1, 16, 1, 1024, 132), 8);  // no split is shorter than 128 tokens
  EXPECT_EQ(decode_splits(1, 16, 1, 100, 132), 1);
  for (const std::int64_t batch : {1, 8, 64, 1000})
    for (const std::int64_t rows : {1, 4, 40})
      for (const std::int64_t capacity : {512, 4096, 32768}) {
        const std::int64_t splits = decode_splits(batch, 16, rows, capacity, 132);
        EXPECT_GE(splits, 1);
        EXPECT_LE(splits, std::min<std::int64_t>(kMostSplits, capacity / kSplitTokens));
      }
  EXPECT_GE(16 * decode_splits(1, 16, 1, 32768, 132), 132 * 5);
  EXPECT_GT(decode_splits(64, 16, 1, 32768, 132), 1);  // 1024 blocks are 1.3 waves: a second split evens them
}

TEST(DecodeAttention, RefusesWhatItCannotDo) {
  Fixture f({.lengths = {5}});
  const auto refused = [&](auto change, DecodeOptions options = {}) {
    AttentionParams params = f.params;
    change(params);
    return decode_attention(params, options, nullptr) == cudaErrorInvalidValue;
  };
  const auto same = [](AttentionParams&) {};
  EXPECT_FALSE(refused(same));
  EXPECT_TRUE(refused([](auto& p) { p.cache.head_dim = 48; }));
  EXPECT_TRUE(refused([](auto& p) { p.cache.dtype = DType::kFloat16; }));
  EXPECT_TRUE(refused([](auto& p) { p.out.dtype = DType::kFloat16; }));
  EXPECT_TRUE(refused([](auto& p) { p.v_new.dtype = DType::kFloat16; }));
  EXPECT_TRUE(refused([](auto& p) { p.heads = 3; }));
  EXPECT_TRUE(refused([](auto& p) { p.q.token_stride += 1; }));
  EXPECT_TRUE(refused([](auto& p) { p.q.data = static_cast<const char*>(p.q.data) + 4; }));
  EXPECT_TRUE(refused(same, {.splits = 0}));
  EXPECT_TRUE(refused(same, {.splits = kMostSplits + 1}));
  EXPECT_TRUE(refused(same, {.splits = 2}));  // no workspace
}

TEST(KvAppend, EveryDtypeAndHeadDim) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (const DType cache : {dtype, DType::kInt8})
      for (const std::int64_t head_dim : {64, 80, 96, 128}) {
        const Case c{
            .query_dtype = dtype, .cache_dtype = cache, .lengths = {0, 65}, .q_len = 3, .head_dim = head_dim};
        SCOPED_TRACE(describe(c));
        Fixture f(c), decoded(c);
        const std::vector<char> before = bytes_beside_new_rows(f, c);
        ASSERT_EQ(kv_append({f.params.k_new, f.params.v_new, f.params.cache, f.params.cache_seqlens, c.q_len},
                            nullptr),
                  cudaSuccess)
            << emulation::last_error();
        f.expect_appended();
        EXPECT_TRUE(bytes_beside_new_rows(f, c) == before);
        ASSERT_NO_FATAL_FAILURE(run(decoded, 1, 0));
        EXPECT_TRUE(f.cache_bytes() == decoded.cache_bytes());
      }
}

}  // namespace
}  // namespace kvfuse::cuda
