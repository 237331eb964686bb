#include "csrc/versions/registry.h"

#include <array>
#include <stdexcept>
#include <string>

namespace kvfuse {
namespace {

constexpr std::array kVersions = {
    Strategy{.name = "v0", .description = "No cache (baseline)"},
    Strategy{.name = "v1", .description = "KV cache", .use_cache = true},
    Strategy{.name = "v2",
             .description = "KV cache + INT8 cache",
             .use_cache = true,
             .kv_cache_dtype = KvCacheDtype::kInt8},
    Strategy{
        .name = "v3", .description = "KV cache + cross-layer sharing", .use_cache = true, .sharing_group = 2},
    Strategy{.name = "v4",
             .description = "KV cache + INT8 + cross-layer",
             .use_cache = true,
             .kv_cache_dtype = KvCacheDtype::kInt8,
             .sharing_group = 2},
    Strategy{.name = "v3a",
             .description = "[EXP] KV cache + cross-layer sharing + Q alignment",
             .use_cache = true,
             .sharing_group = 2,
             .q_alignment = QAlignment::kCopy},
    Strategy{.name = "v4a",
             .description = "[EXP] KV cache + INT8 + cross-layer + Q alignment",
             .use_cache = true,
             .kv_cache_dtype = KvCacheDtype::kInt8,
             .sharing_group = 2,
             .q_alignment = QAlignment::kCopy},
    Strategy{.name = "v3f",
             .description = "[EXP] KV cache + cross-layer sharing + fitted Q and output",
             .use_cache = true,
             .sharing_group = 2,
             .q_alignment = QAlignment::kFit},
    Strategy{.name = "v4f",
             .description = "[EXP] KV cache + INT8 + cross-layer + fitted Q and output",
             .use_cache = true,
             .kv_cache_dtype = KvCacheDtype::kInt8,
             .sharing_group = 2,
             .q_alignment = QAlignment::kFit},
    Strategy{.name = "v1w8",
             .description = "KV cache + INT8 weights",
             .use_cache = true,
             .weight_dtype = WeightDtype::kInt8},
    Strategy{.name = "v2w8",
             .description = "KV cache + INT8 cache + INT8 weights",
             .use_cache = true,
             .kv_cache_dtype = KvCacheDtype::kInt8,
             .weight_dtype = WeightDtype::kInt8},
    Strategy{.name = "v4w8",
             .description = "KV cache + INT8 + cross-layer + INT8 weights",
             .use_cache = true,
             .kv_cache_dtype = KvCacheDtype::kInt8,
             .sharing_group = 2,
             .weight_dtype = WeightDtype::kInt8},
    Strategy{.name = "v2w4",
             .description = "KV cache + INT8 cache + INT4 weights",
             .use_cache = true,
             .kv_cache_dtype = KvCacheDtype::kInt8,
             .weight_dtype = WeightDtype::kInt4},
};

}  // namespace

std::span<const Strategy> versions() { return kVersions; }

const Strategy& uncached_baseline() { return kVersions[0]; }
const Strategy& cached_baseline() { return kVersions[1]; }

const Strategy& find_version(std::string_view name) {
  std::string known;
  for (const Strategy& version : kVersions) {
    if (version.name == name) {
      check_strategy(version);
      return version;
    }
    known += (known.empty() ? "" : ", ") + std::string(version.name);
  }
  throw std::invalid_argument("unknown version \"" + std::string(name) + "\" (known: " + known + ")");
}

}  // namespace kvfuse
