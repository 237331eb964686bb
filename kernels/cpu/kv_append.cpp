// Writes new K and V rows into the cache; an int8 cache quantises them on the way.
#include "kernels/attention.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// A task is one token of one sequence: all its heads, which lie together in the input.
void kv_append(const AppendParams& p) {
  const std::int64_t tasks = p.cache.batch * p.tokens;
  parallel_tasks(tasks, worker_count(tasks / 8), [&](std::int64_t task, std::int64_t, int) {
    const std::int64_t b = task / p.tokens;
    const std::int64_t token = task % p.tokens;
    for (std::int64_t kv_head = 0; kv_head < p.cache.kv_heads; ++kv_head)
      append_row(p.k_new, p.v_new, p.cache, b, kv_head, token, p.cache_seqlens[b] + token);
  });
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
