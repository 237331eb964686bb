// Generation beyond the window: see OverflowPolicy.
#pragma once

#include "csrc/model/gpt2.h"
#include "csrc/model/kv_cache.h"
#include "csrc/model/overflow_policy.h"
#include "csrc/model/token_batch.h"

namespace kvfuse {

// Throws std::invalid_argument naming the rule and the value. `window`: the cache's capacity, or block_size
// without a cache, which kSink needs.
void check_policy(const OverflowPolicy& policy, std::int64_t window, bool cached);

// Before a pass over the newest token of each of `sequences`, the last one of its row: makes room in `cache`,
// which holds those before it. Only full sequences change. kError changes nothing, and the pass will throw.
void make_room(const Gpt2& model, KvCache& cache, const TokenBatch& sequences, const OverflowPolicy& policy);

// Without a cache: what the newest token of each sequence sees, by the rule of kSlide or, if nothing
// overflows, all of it.
TokenBatch visible_windows(const TokenBatch& sequences, std::int64_t window, const OverflowPolicy& policy);

}  // namespace kvfuse
