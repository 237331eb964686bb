// Causal attention of many query tokens, appending the prompt first.
//
// Two parallel passes: the new rows are written (quantised) into the cache, then a task attends from one tile
// of queries of one head to the cache, a tile of keys at a time with a running maximum and sum. K and V tiles
// pass through cache-sized float32 scratch. Queries are transposed, once a tile, and scores come out with a
// row a key: so both products are the same small matrix kernel, and the softmax takes a vector of queries at
// a time. Every query attends to what the cache holds, the dequantised values for int8, as a later decode
// step does.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/head_dims.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

void kv_append(const AppendParams& params);

namespace {

constexpr int kQueryTile = 64;  // amortises bringing in K and V
constexpr int kKeyTile = 64;
constexpr int kBlockRows =
    4;  // x 2 vectors = 8 accumulators: covers the latency of fused multiply-add in 16 registers

// A worker's tiles. About 100 KiB at head size 64: stays in the second-level cache.
template <int kHeadDim>
struct Tiles {
  alignas(64) float q_transposed[kHeadDim * kQueryTile];
  alignas(64) float k[kKeyTile * kHeadDim];
  alignas(64) float v[kKeyTile * kHeadDim];
  alignas(64) float p[kKeyTile * kQueryTile];  // scores, then their exponentials
  alignas(64) float out[kQueryTile * kHeadDim];
  alignas(64) float maximum[kQueryTile];
  alignas(64) float sum[kQueryTile];
  alignas(64) float shrink[kQueryTile];  // of what was summed before a new maximum
};

// A matrix by where its elements lie: floats from row to row, and from column to column.
struct Matrix {
  const float* data;
  int row_stride;
  int column_stride;

  Matrix from_row(int row) const { return {data + row * row_stride, row_stride, column_stride}; }
  float at(int row, int column) const { return data[row * row_stride + column * column_stride]; }
};

// c[kBlockRows][kVectors vectors] += a[kBlockRows][depth] * b[depth][...]; row strides in floats.
template <int kVectors>
inline void multiply_block(Matrix a, const float* b, int b_stride, float* c, int c_stride, int depth) {
  Vec acc[kBlockRows][kVectors];
  for (int r = 0; r < kBlockRows; ++r)
    for (int j = 0; j < kVectors; ++j) acc[r][j] = load(c + r * c_stride + j * kLanes);
  for (int i = 0; i < depth; ++i) {
    Vec column[kVectors];
    for (int j = 0; j < kVectors; ++j) column[j] = load(b + i * b_stride + j * kLanes);
    for (int r = 0; r < kBlockRows; ++r) {
      const Vec factor = splat(a.at(r, i));
      for (int j = 0; j < kVectors; ++j) acc[r][j] = fma(factor, column[j], acc[r][j]);
    }
  }
  for (int r = 0; r < kBlockRows; ++r)
    for (int j = 0; j < kVectors; ++j) store(c + r * c_stride + j * kLanes, acc[r][j]);
}

// c[rows][columns] += a[rows][depth] * b[depth][columns], b and c with rows of kWidth floats. `rows` is
// rounded up to a multiple of kBlockRows, `columns` to one of kLanes.
template <int kWidth>
void multiply(Matrix a, const float* b, float* c, int rows, int columns, int depth) {
  for (int r = 0; r < rows; r += kBlockRows) {
    int j = 0;
    for (; j + kLanes < columns; j += 2 * kLanes)
      multiply_block<2>(a.from_row(r), b + j, kWidth, c + r * kWidth + j, kWidth, depth);
    if (j < columns) multiply_block<1>(a.from_row(r), b + j, kWidth, c + r * kWidth + j, kWidth, depth);
  }
}

template <typename T, int kHeadDim>
class PrefillAttention {
 public:
  explicit PrefillAttention(const AttentionParams& params)
      : p_(params), group_(params.heads / params.cache.kv_heads) {}

  void run() {
    const std::int64_t query_tiles = (p_.q_len + kQueryTile - 1) / kQueryTile;
    const std::int64_t heads = p_.cache.batch * p_.heads;
    const std::int64_t tasks = query_tiles * heads;
    const int workers = worker_count(tasks);
    auto* tiles = static_cast<Tiles<kHeadDim>*>(
        thread_scratch().reserve(workers * static_cast<std::int64_t>(sizeof(Tiles<kHeadDim>))));
    // The last tiles see the most keys: handed out first, they leave the workers finishing together.
    parallel_tasks(tasks, workers, [&](std::int64_t task, std::int64_t, int worker) {
      const std::int64_t head = task % heads;
      run_task(head / p_.heads, head % p_.heads, (query_tiles - 1 - task / heads) * kQueryTile,
               tiles[worker]);
    });
  }

 private:
  void run_task(std::int64_t b, std::int64_t head, std::int64_t first_query, Tiles<kHeadDim>& tiles) const {
    const int queries = static_cast<int>(std::min<std::int64_t>(kQueryTile, p_.q_len - first_query));
    load_queries(b, head, first_query, queries, tiles);
    const std::int64_t total = p_.cache_seqlens[b] + (p_.k_new.data != nullptr ? p_.q_len : 0);
    // Query r of the tile sees the first `visible_first + r` tokens.
    const std::int64_t visible_first = total - p_.q_len + first_query + 1;
    const std::int64_t visible_last = visible_first + queries - 1;
    for (std::int64_t key = 0; key < visible_last; key += kKeyTile) {
      const int keys = static_cast<int>(std::min<std::int64_t>(kKeyTile, visible_last - key));
      load_keys(b, head / group_, key, keys, tiles);
      std::fill_n(tiles.p, kKeyTile * kQueryTile, 0.0F);
      multiply<kQueryTile>({tiles.k, kHeadDim, 1}, tiles.q_transposed, tiles.p, keys, queries, kHeadDim);
      soften(visible_first - key, keys, queries, tiles);
      multiply<kHeadDim>({tiles.p, 1, kQueryTile}, tiles.v, tiles.out, queries, kHeadDim, keys);
    }
    for (int r = 0; r < queries; ++r) {
      float* out = tiles.out + r * kHeadDim;
      if (visible_first + r > 0)  // else the query sees no token
        for (int d = 0; d < kHeadDim; ++d) out[d] /= tiles.sum[r];
      write_row(out, p_.out.dtype, kHeadDim, row_of(p_.out, b, head, first_query + r));
    }
  }

  void load_queries(std::int64_t b, std::int64_t head, std::int64_t first_query, int queries,
                    Tiles<kHeadDim>& tiles) const {
    std::fill_n(tiles.q_transposed, kHeadDim * kQueryTile, 0.0F);
    std::fill_n(tiles.out, kQueryTile * kHeadDim, 0.0F);
    std::fill_n(tiles.maximum, kQueryTile, -INFINITY);
    std::fill_n(tiles.sum, kQueryTile, 0.0F);
    alignas(64) float row[kHeadDim];
    for (int r = 0; r < queries; ++r) {
      read_row(row_of(p_.q, b, head, first_query + r), p_.q.dtype, kHeadDim, row);
      for (int d = 0; d < kHeadDim; ++d) tiles.q_transposed[d * kQueryTile + r] = row[d] * p_.softmax_scale;
    }
  }

  // Brings keys [first, first + count) into scratch as float32.
  void load_keys(std::int64_t b, std::int64_t kv_head, std::int64_t first, int count,
                 Tiles<kHeadDim>& tiles) const {
    const std::int64_t base = (b * p_.cache.kv_heads + kv_head) * p_.cache.capacity + first;
    const T* k = static_cast<const T*>(p_.cache.k) + base * kHeadDim;
    const T* v = static_cast<const T*>(p_.cache.v) + base * kHeadDim;
    for (int i = 0; i < count; ++i) {
      float k_scale = 1.0F;
      float v_scale = 1.0F;
      if constexpr (std::is_same_v<T, std::int8_t>) {
        k_scale = p_.cache.k_scale[base + i];
        v_scale = p_.cache.v_scale[base + i];
      }
      for (int d = i * kHeadDim; d < (i + 1) * kHeadDim; d += kLanes) {
        store(tiles.k + d, mul(load(k + d), splat(k_scale)));
        store(tiles.v + d, mul(load(v + d), splat(v_scale)));
      }
    }
  }

  // One online-softmax step of all queries over the scores of `keys` keys, of which query r sees the first
  // `visible + r`; the other scores become 0.
  static void soften(std::int64_t visible, int keys, int queries, Tiles<kHeadDim>& tiles) {
    for (std::int64_t i = std::max<std::int64_t>(visible, 0); i < keys; ++i)
      std::fill_n(tiles.p + i * kQueryTile, std::min<std::int64_t>(i + 1 - visible, kQueryTile), -INFINITY);
    for (int r = 0; r < queries; r += kLanes) {
      const Vec before = load(tiles.maximum + r);
      Vec maximum = before;
      for (int i = 0; i < keys; ++i) maximum = max(maximum, load(tiles.p + i * kQueryTile + r));
      // Of a query that has seen no token yet every exponential is 0, not e^(infinity - infinity).
      const Vec from = max(maximum, splat(std::numeric_limits<float>::lowest()));
      const Vec shrink = exp_nonpositive(sub(before, from));
      Vec sum = mul(load(tiles.sum + r), shrink);
      for (int i = 0; i < keys; ++i) {
        float* p = tiles.p + i * kQueryTile + r;
        const Vec value = exp_nonpositive(sub(load(p), from));
        sum = add(sum, value);
        store(p, value);
      }
      store(tiles.maximum + r, maximum);
      store(tiles.sum + r, sum);
      store(tiles.shrink + r, shrink);
    }
    for (int r = 0; r < queries; ++r)
      for (int d = r * kHeadDim; d < (r + 1) * kHeadDim; d += kLanes)
        store(tiles.out + d, mul(load(tiles.out + d), splat(tiles.shrink[r])));
  }

  const AttentionParams& p_;
  const std::int64_t group_;  // query heads that share a kv head
};

}  // namespace

void prefill_attention(const AttentionParams& params) {
  if (params.k_new.data != nullptr)
    kv_append({.k_new = params.k_new,
               .v_new = params.v_new,
               .cache = params.cache,
               .cache_seqlens = params.cache_seqlens,
               .tokens = params.q_len});
  with_cache_type(params.cache.dtype, [&](auto element) {
    with_int(params.cache.head_dim, HeadDims{},
             [&](auto head_dim) { PrefillAttention<decltype(element), head_dim>(params).run(); });
  });
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
