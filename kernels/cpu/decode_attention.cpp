// Attention of a few query tokens over a long cache, with the new tokens appended on the way.
//
// A task is one (sequence, kv head, chunk of kChunk cached tokens at most): it writes the new rows that fall
// into its chunk, then attends from every query row that shares the kv head. Chunks of one head meet in
// scratch as (maximum, sum, weighted values); the task that finishes last merges them in chunk order. Chunks
// depend on the length alone, so a sequence gives the same bits alone or in a batch, on any number of
// threads.
//
// An int8 cache is attended on its codes. The query is quantised to 16 bits once (its error, 2^-16 of the
// largest element, vanishes beside the cache's 2^-8), K rows are read as integer dot products, and V's scale
// is folded into the probabilities, which are rounded to 15 bits of the largest in the chunk so that V rows
// too are summed as integers. No row is ever written back dequantised.
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/cpu/cache_rows.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/head_dims.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {

// Tokens a task at most: 16 KiB of int8 K, enough to hide the merge, small enough to share out.
constexpr int kChunk = 256;
constexpr int kRowsPerStep = 8;  // K rows whose dot products are summed together
static_assert(kChunk <= kMostRows);

// Softmax and weighted values of one query row over one chunk, unnormalised.
template <int kHeadDim>
struct Partial {
  alignas(64) float values[kHeadDim];
  float maximum;
  float sum;
};

template <typename T, int kHeadDim, Level kLevel>
void attend_chunk(const Query<T, kHeadDim>& query, const T* k, const T* v, const float* k_scale,
                  const float* v_scale, int count, const T* next_k, Partial<kHeadDim>& out) {
  constexpr bool kScaled = std::is_same_v<T, std::int8_t>;
  alignas(64) float weights[kChunk + kLanes];
  if constexpr (kScaled) {
    prefetch_block<kLevel>(k_scale, count);
    prefetch_block<kLevel>(v_scale, count);
  }
  // One V row in kPart comes beside K's rows, the others beside the softmax.
  constexpr int kPart = kLevel == Level::kSecond ? 2 : 1;
  int row = 0;
  for (; row + kRowsPerStep <= count; row += kRowsPerStep) {
    prefetch_block<kLevel>(v + std::int64_t{row} / kPart * kHeadDim, kRowsPerStep / kPart * kHeadDim);
    dot_rows<kRowsPerStep>(query, k + std::int64_t{row} * kHeadDim, weights + row);
  }
  for (; row < count; ++row) dot_rows<1>(query, k + std::int64_t{row} * kHeadDim, weights + row);

  // The softmax in two passes, which take the scales along: meanwhile nothing asks for memory. Scales past
  // the last row may be NaN, so its vector is scaled apart.
  const int whole = count / kLanes * kLanes;
  const int padded = (count + kLanes - 1) / kLanes * kLanes;
  if constexpr (kScaled)
    for (int i = whole; i < count; ++i) weights[i] *= query.scale * k_scale[i];
  for (int i = count; i < padded; ++i) weights[i] = -INFINITY;
  Vec most = splat(-INFINITY);
  for (int i = 0; i < padded; i += kLanes) {
    Vec score = load(weights + i);
    if constexpr (kScaled) {
      if (i < whole) score = mul(score, mul(splat(query.scale), load(k_scale + i)));
      store(weights + i, score);
    }
    most = max(most, score);
  }
  out.maximum = reduce_max(most);
  Vec sum = zero();
  for (int i = 0; i < padded; i += kLanes) {
    if constexpr (kPart == 2)
      prefetch_block<kLevel>(v + std::int64_t{count + i} / 2 * kHeadDim, kLanes / 2 * kHeadDim);
    Vec p = exp_nonpositive(sub(load(weights + i), splat(out.maximum)));
    sum = add(sum, p);
    if (kScaled && i < whole) p = mul(p, load(v_scale + i));
    store(weights + i, p);
  }
  out.sum = reduce_add(sum);
  if constexpr (kScaled)
    for (int i = whole; i < count; ++i) weights[i] *= v_scale[i];
  weighted_sum<kHeadDim, kLevel>(weights, v, count, next_k, out.values);
}

// One call: what a task needs beyond the parameters.
template <typename T, int kHeadDim, Level kLevel>
class DecodeAttention {
 public:
  explicit DecodeAttention(const AttentionParams& params)
      : p_(params), group_(params.heads / params.cache.kv_heads), query_rows_(group_ * params.q_len) {}

  void run() {
    lay_out();
    const int workers = worker_count(tasks_);
    parallel_tasks(tasks_, workers,
                   [this](std::int64_t task, std::int64_t next, int) { run_task(task, next); });
  }

 private:
  using Row = Partial<kHeadDim>;

  // A cache line each: workers go through heads side by side.
  struct alignas(64) Finished {
    std::atomic<std::int32_t> chunks{0};
  };

  std::int64_t total_tokens(std::int64_t b) const {
    return p_.cache_seqlens[b] + (p_.k_new.data != nullptr ? p_.q_len : 0);
  }
  static std::int64_t chunks_of(std::int64_t tokens) {
    return std::max<std::int64_t>(1, (tokens + kChunk - 1) / kChunk);
  }

  // Of chunks that are alike: behind full ones a short last one would have its neighbour fetched in part, or
  // rows that no token fills.
  static std::int64_t chunk_tokens(std::int64_t tokens) {
    const std::int64_t steps = chunks_of(tokens) * kRowsPerStep;
    return (tokens + steps - 1) / steps * kRowsPerStep;
  }

  // Scratch: finished chunks of each (sequence, kv head), the partial results, the first task of each
  // sequence.
  void lay_out() {
    const std::int64_t batch = p_.cache.batch;
    const std::int64_t heads = batch * p_.cache.kv_heads;
    std::int64_t chunks = 0;
    for (std::int64_t b = 0; b < batch; ++b) chunks += chunks_of(total_tokens(b));
    tasks_ = chunks * p_.cache.kv_heads;
    const std::int64_t count_bytes = heads * static_cast<std::int64_t>(sizeof(Finished));
    const std::int64_t row_bytes = tasks_ * query_rows_ * static_cast<std::int64_t>(sizeof(Row));
    const std::int64_t first_bytes = (batch + 1) * static_cast<std::int64_t>(sizeof(std::int64_t));
    char* scratch = static_cast<char*>(thread_scratch().reserve(count_bytes + row_bytes + first_bytes));
    finished_ = reinterpret_cast<Finished*>(scratch);
    partials_ = reinterpret_cast<Row*>(scratch + count_bytes);
    first_task_ = reinterpret_cast<std::int64_t*>(scratch + count_bytes + row_bytes);
    first_task_[0] = 0;
    for (std::int64_t b = 0; b < batch; ++b)
      first_task_[b + 1] = first_task_[b] + chunks_of(total_tokens(b)) * p_.cache.kv_heads;
    for (std::int64_t i = 0; i < heads; ++i) new (&finished_[i]) Finished();
  }

  // Where a task's tokens [begin, end) lie.
  struct Place {
    std::int64_t b;
    std::int64_t kv_head;
    std::int64_t chunks;  // of this head
    std::int64_t begin;
    std::int64_t end;
    std::int64_t row;  // of the cache seen as [batch * kv_heads * capacity, head_dim]
  };

  Place place_of(std::int64_t task) const {
    const std::int64_t b =
        std::upper_bound(first_task_, first_task_ + p_.cache.batch + 1, task) - first_task_ - 1;
    const std::int64_t total = total_tokens(b);
    const std::int64_t chunks = chunks_of(total);
    const std::int64_t kv_head = (task - first_task_[b]) / chunks;
    const std::int64_t tokens = chunk_tokens(total);
    const std::int64_t begin = (task - first_task_[b]) % chunks * tokens;
    return {b,
            kv_head,
            chunks,
            begin,
            std::min(begin + tokens, total),
            (b * p_.cache.kv_heads + kv_head) * p_.cache.capacity + begin};
  }

  void run_task(std::int64_t task, std::int64_t next) {
    const Place place = place_of(task);
    append(place);
    const T* k = static_cast<const T*>(p_.cache.k) + place.row * kHeadDim;
    const T* v = static_cast<const T*>(p_.cache.v) + place.row * kHeadDim;
    const T* next_k = next < tasks_ ? static_cast<const T*>(p_.cache.k) + place_of(next).row * kHeadDim : k;
    const float* k_scale = p_.cache.k_scale == nullptr ? nullptr : p_.cache.k_scale + place.row;
    const float* v_scale = p_.cache.v_scale == nullptr ? nullptr : p_.cache.v_scale + place.row;
    Row* partial = partials_ + task * query_rows_;
    for (std::int64_t row = 0; row < query_rows_; ++row) {
      const std::int64_t seen = total_tokens(place.b) - p_.q_len + row % p_.q_len + 1 - place.begin;
      const int count = static_cast<int>(std::clamp<std::int64_t>(seen, 0, place.end - place.begin));
      Query<T, kHeadDim> query;
      load_query(place.b, place.kv_head, row, query);
      attend_chunk<T, kHeadDim, kLevel>(query, k, v, k_scale, v_scale, count,
                                        row + 1 < query_rows_ ? k : next_k, partial[row]);
    }
    std::atomic<std::int32_t>& finished = finished_[place.b * p_.cache.kv_heads + place.kv_head].chunks;
    if (place.chunks > 1 && finished.fetch_add(1, std::memory_order_acq_rel) + 1 < place.chunks) return;
    const std::int64_t first = first_task_[place.b] + place.kv_head * place.chunks;
    for (std::int64_t row = 0; row < query_rows_; ++row)
      finish(place, row, partials_ + first * query_rows_ + row);
  }

  // Writes the new rows that belong to this task's chunk.
  void append(const Place& place) const {
    if (p_.k_new.data == nullptr) return;
    const std::int64_t old = p_.cache_seqlens[place.b];
    for (std::int64_t position = std::max<std::int64_t>(place.begin, old); position < place.end; ++position)
      append_row(p_.k_new, p_.v_new, p_.cache, place.b, place.kv_head, position - old, position);
  }

  void load_query(std::int64_t b, std::int64_t kv_head, std::int64_t row, Query<T, kHeadDim>& query) const {
    alignas(64) float q[kHeadDim];
    read_row(row_of(p_.q, b, kv_head * group_ + row / p_.q_len, row % p_.q_len), p_.q.dtype, kHeadDim, q);
    for (float& value : q) value *= p_.softmax_scale;
    prepare(q, query);
  }

  // Merges one query row's chunks, `partial` being the first of them, and writes the normalised result.
  void finish(const Place& place, std::int64_t row, const Row* partial) const {
    float maximum = -INFINITY;
    for (std::int64_t c = 0; c < place.chunks; ++c)
      maximum = std::max(maximum, partial[c * query_rows_].maximum);
    alignas(64) float out[kHeadDim] = {};
    float sum = 0.0F;
    for (std::int64_t c = 0; c < place.chunks; ++c) {
      const Row& chunk = partial[c * query_rows_];
      if (chunk.maximum == -INFINITY && chunk.sum == 0.0F) continue;  // this row sees nothing of the chunk
      const float factor = std::exp(chunk.maximum - maximum);
      sum += chunk.sum * factor;
      for (int d = 0; d < kHeadDim; d += kLanes)
        store(out + d, fma(load(chunk.values + d), splat(factor), load(out + d)));
    }
    if (sum != 0.0F)
      for (int d = 0; d < kHeadDim; d += kLanes) store(out + d, div(load(out + d), splat(sum)));
    const std::int64_t head = place.kv_head * group_ + row / p_.q_len;
    write_row(out, p_.out.dtype, kHeadDim, row_of(p_.out, place.b, head, row % p_.q_len));
    if (p_.softmax_lse != nullptr)
      p_.softmax_lse[(place.b * p_.heads + head) * p_.q_len + row % p_.q_len] = maximum + std::log(sum);
  }

  const AttentionParams& p_;
  const std::int64_t group_;       // query heads that share a kv head
  const std::int64_t query_rows_;  // query rows that share a kv head
  std::int64_t tasks_ = 0;
  std::int64_t* first_task_ = nullptr;  // [batch + 1]
  Finished* finished_ = nullptr;        // [batch, kv_heads]
  Row* partials_ = nullptr;             // [tasks, query rows]
};

// Whether blocks of int8 K and V are fetched into the first-level cache: if it holds three of them, the one
// that is read, the one that comes, and room for what else there is. Not on an Intel CPU, which keeps far
// fewer requests under way there than into the second one (docs/decisions.md).
bool first_level_takes_blocks(int head_dim) {
  static const std::int64_t bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);  // 0 or less: not known
  return !is_intel() && std::int64_t{3} * kChunk * head_dim <= bytes;
}

template <typename T, int kHeadDim>
void run(const AttentionParams& params) {
  if constexpr (std::is_same_v<T, std::int8_t>)
    if (first_level_takes_blocks(kHeadDim)) {
      if (params.heads == params.cache.kv_heads && params.q_len == 1)
        return DecodeAttention<T, kHeadDim, Level::kOnce>(params).run();
      return DecodeAttention<T, kHeadDim, Level::kFirst>(params).run();
    }
  DecodeAttention<T, kHeadDim, Level::kSecond>(params).run();
}

}  // namespace

void decode_attention(const AttentionParams& params) {
  with_cache_type(params.cache.dtype, [&](auto element) {
    with_int(params.cache.head_dim, HeadDims{},
             [&](auto head_dim) { run<decltype(element), head_dim>(params); });
  });
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
