#include "csrc/ops/check.h"

#include <c10/util/SmallVector.h>

#include <array>
#include <cmath>
#include <string>

#include "csrc/ops/check_rules.h"
#include "kernels/head_dims.h"

namespace kvfuse::ops {
namespace {

constexpr const char* kQueryShape = "[batch, heads, q_len, head_dim]";

void check_scale(const char* op, const char* name, const std::optional<at::Tensor>& scale,
                 const CacheTensors& cache) {
  const bool is_int8 = cache.k_cache.scalar_type() == at::kChar;
  const bool given = is_given(scale);
  TORCH_CHECK_VALUE(given || !is_int8, op, ": expected ", name, " with an int8 cache, got None");
  TORCH_CHECK_VALUE(!given || is_int8, op, ": expected no ", name, " with a ",
                    name_of(cache.k_cache.scalar_type()), " cache (only int8 has scales), got a tensor");
  if (!given) return;
  const NamedTensor arg{name, *scale};
  check_device(op, {"k_cache", cache.k_cache}, arg);
  check_dtype(op, arg, at::kFloat, "");
  check_shape(op, arg, cache.k_cache.sym_sizes().slice(0, 3), "batch, kv_heads, capacity of k_cache");
  check_contiguous(op, arg);
}

void check_cache_dtype(const char* op, const NamedTensor& first, const at::Tensor& k_cache) {
  const at::ScalarType dtype = k_cache.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kChar || dtype == first.tensor.scalar_type(), op,
                   ": expected k_cache of dtype ", name_of(first.tensor.scalar_type()), " (that of ",
                   first.name, ") or int8, got ", name_of(dtype));
}

void check_cache_shape(const char* op, const NamedTensor& first, const at::Tensor& k_cache) {
  check_dim(op, {"k_cache", k_cache}, 4, "[batch, kv_heads, capacity, head_dim]");
  TORCH_CHECK_VALUE(is_true(k_cache.sym_size(1).sym_ge(1)), op,
                    ": expected at least one head in k_cache, got shape ", k_cache.sym_sizes());
  for (const std::int64_t dim : {0, 3})
    TORCH_CHECK_VALUE(is_true(k_cache.sym_size(dim).sym_eq(first.tensor.sym_size(dim))), op,
                      ": expected k_cache with the ", dim == 0 ? "batch" : "head_dim", " of ", first.name,
                      " (", first.tensor.sym_size(dim), "), got ", k_cache.sym_size(dim));
}

// The cache by itself, and against `first`: the operator's first argument, [batch, ..., head_dim].
void check_cache(const char* op, const NamedTensor& first, const CacheTensors& cache) {
  const NamedTensor k_cache{"k_cache", cache.k_cache};
  const NamedTensor v_cache{"v_cache", cache.v_cache};
  const NamedTensor seqlens{"cache_seqlens", cache.cache_seqlens};
  for (const NamedTensor& arg : {k_cache, v_cache, seqlens}) check_device(op, first, arg);

  check_cache_dtype(op, first, cache.k_cache);
  check_dtype(op, v_cache, cache.k_cache.scalar_type(), " (that of k_cache)");
  check_dtype(op, seqlens, at::kInt, "");

  check_cache_shape(op, first, cache.k_cache);
  check_shape(op, v_cache, cache.k_cache.sym_sizes(), "that of k_cache");
  check_shape(op, seqlens, cache.k_cache.sym_sizes().slice(0, 1), "batch of k_cache");
  for (const NamedTensor& arg : {k_cache, v_cache, seqlens}) check_contiguous(op, arg);
  check_scale(op, "k_scale", cache.k_scale, cache);
  check_scale(op, "v_scale", cache.v_scale, cache);
}

std::string head_dims_of(c10::DeviceType device) {
  return device == at::kCUDA ? to_text(CudaHeadDims{}) : to_text(HeadDims{});
}

bool has_head_dim(c10::DeviceType device, std::int64_t head_dim) {
  return device == at::kCUDA ? contains(CudaHeadDims{}, head_dim) : contains(HeadDims{}, head_dim);
}

// `arg` opens the operator's argument list: everything else is compared with it.
void check_first(const char* op, const NamedTensor& arg, const char* shape) {
  check_given(op, arg);
  check_dim(op, arg, 4, shape);
  check_float_dtype(op, arg.name, arg.tensor.scalar_type());
  const std::int64_t head_dim = arg.tensor.sym_size(3).guard_int(__FILE__, __LINE__);
  const c10::DeviceType device = arg.tensor.device().type();
  TORCH_CHECK_NOT_IMPLEMENTED(has_head_dim(device, head_dim), op, ": expected ", arg.name,
                              " with a head_dim of ", head_dims_of(device), " on ", device, ", got ",
                              head_dim);
}

// K and V rows of `tokens` tokens, to be appended to `cache`.
void check_new_rows(const char* op, const NamedTensor& first, const NamedTensor& rows,
                    const CacheTensors& cache, const c10::SymInt& tokens) {
  check_device(op, first, rows);
  TORCH_CHECK_TYPE(rows.tensor.scalar_type() == first.tensor.scalar_type(), op, ": expected ", rows.name,
                   " of dtype ", name_of(first.tensor.scalar_type()), " (that of ", first.name, "), got ",
                   name_of(rows.tensor.scalar_type()));
  const std::array<c10::SymInt, 4> want = {cache.k_cache.sym_size(0), cache.k_cache.sym_size(1), tokens,
                                           cache.k_cache.sym_size(3)};
  check_shape(op, rows, want, "batch, kv_heads, tokens, head_dim");
}

void check_heads(const char* op, const at::Tensor& q, const at::Tensor& k_cache) {
  const c10::SymInt heads = q.sym_size(1);
  const c10::SymInt kv_heads = k_cache.sym_size(1);
  TORCH_CHECK_VALUE(is_true(heads.sym_ge(1)) && is_true((heads % kv_heads).sym_eq(0)), op,
                    ": expected heads of q to be a multiple of the ", kv_heads, " kv_heads of k_cache, got ",
                    heads);
}

void check_workspace(const char* op, const at::Tensor& q, const std::optional<at::Tensor>& workspace) {
  if (!is_given(workspace)) return;
  const NamedTensor arg{"workspace", *workspace};
  check_device(op, {"q", q}, arg);
  check_dtype(op, arg, at::kByte, "");
  check_contiguous(op, arg);
}

void check_softmax_lse(const char* op, const at::Tensor& q, const std::optional<at::Tensor>& softmax_lse) {
  if (!is_given(softmax_lse)) return;
  const NamedTensor arg{"softmax_lse", *softmax_lse};
  check_device(op, {"q", q}, arg);
  check_dtype(op, arg, at::kFloat, "");
  check_shape(op, arg, q.sym_sizes().slice(0, 3), "batch, heads, q_len of q");
  check_contiguous(op, arg);
}

void check_query(const char* op, const at::Tensor& q, const CacheTensors& cache,
                 std::optional<double> softmax_scale, const DecodeBuffers& buffers) {
  check_first(op, {"q", q}, kQueryShape);
  check_cache(op, {"q", q}, cache);
  check_heads(op, q, cache.k_cache);
  check_workspace(op, q, buffers.workspace);
  check_softmax_lse(op, q, buffers.softmax_lse);
  TORCH_CHECK_VALUE(!softmax_scale || std::isfinite(static_cast<float>(*softmax_scale)), op,
                    ": expected a finite softmax_scale, got ", *softmax_scale);
}

// The bytes from the first to the last element.
struct MemoryRange {
  const char* name;
  const char* begin = nullptr;
  const char* end = nullptr;
};

MemoryRange memory_of(const NamedTensor& arg) {
  const at::Tensor& tensor = arg.tensor;
  if (tensor.numel() == 0) return {arg.name};
  std::int64_t elements = 1;
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim)
    elements += (tensor.size(dim) - 1) * tensor.stride(dim);
  const char* begin = static_cast<const char*>(tensor.const_data_ptr());
  return {arg.name, begin, begin + elements * static_cast<std::int64_t>(tensor.element_size())};
}

using MemoryRanges = c10::SmallVector<MemoryRange, 8>;

MemoryRanges memory_of(const CacheTensors& cache) {
  MemoryRanges ranges = {memory_of({"k_cache", cache.k_cache}), memory_of({"v_cache", cache.v_cache})};
  if (cache.k_cache.scalar_type() == at::kChar) {
    ranges.push_back(memory_of({"k_scale", *cache.k_scale}));
    ranges.push_back(memory_of({"v_scale", *cache.v_scale}));
  }
  return ranges;
}

// The first `written` of `ranges` overlap none of the others.
void check_separate(const char* op, const MemoryRanges& ranges, std::size_t written) {
  for (std::size_t a = 0; a < written; ++a)
    for (std::size_t b = a + 1; b < ranges.size(); ++b)
      TORCH_CHECK_VALUE(ranges[a].end <= ranges[b].begin || ranges[b].end <= ranges[a].begin, op,
                        ": expected ", ranges[a].name, " and ", ranges[b].name,
                        " in separate memory, got tensors that overlap");
}

}  // namespace

void check_kv_append(const at::Tensor& k, const at::Tensor& v, const CacheTensors& cache) {
  const NamedTensor first{"k", k};
  check_first(kKvAppend, first, "[batch, kv_heads, tokens, head_dim]");
  check_cache(kKvAppend, first, cache);
  check_new_rows(kKvAppend, first, first, cache, k.sym_size(2));
  check_new_rows(kKvAppend, first, {"v", v}, cache, k.sym_size(2));
}

void check_decode_workspace(const at::Tensor& q, const at::Tensor& k_cache) {
  const NamedTensor first{"q", q};
  check_first(kDecodeWorkspace, first, kQueryShape);
  check_device(kDecodeWorkspace, first, {"k_cache", k_cache});
  check_cache_dtype(kDecodeWorkspace, first, k_cache);
  check_cache_shape(kDecodeWorkspace, first, k_cache);
  check_heads(kDecodeWorkspace, q, k_cache);
}

void check_decode_attention(const at::Tensor& q, const CacheTensors& cache,
                            std::optional<double> softmax_scale, const DecodeBuffers& buffers) {
  check_query(kDecodeAttention, q, cache, softmax_scale, buffers);
}

void check_append_attention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const CacheTensors& cache, std::optional<double> softmax_scale,
                            const DecodeBuffers& buffers) {
  check_query(op, q, cache, softmax_scale, buffers);
  check_new_rows(op, {"q", q}, {"k", k}, cache, q.sym_size(2));
  check_new_rows(op, {"q", q}, {"v", v}, cache, q.sym_size(2));
}

void check_quantize_kv(const at::Tensor& x) {
  check_float_dtype(kQuantizeKv, "x", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() >= 1, kQuantizeKv, ": expected x of shape [..., width], got ", x.sym_sizes());
}

void check_dequantize_kv(const at::Tensor& codes, const at::Tensor& scale, at::ScalarType dtype) {
  check_given(kDequantizeKv, {"codes", codes});
  check_device(kDequantizeKv, {"codes", codes}, {"scale", scale});
  check_dtype(kDequantizeKv, {"codes", codes}, at::kChar, "");
  check_dtype(kDequantizeKv, {"scale", scale}, at::kFloat, "");
  check_float_dtype(kDequantizeKv, "a result", dtype);
  TORCH_CHECK_VALUE(codes.dim() >= 1, kDequantizeKv, ": expected codes of shape [..., width], got ",
                    codes.sym_sizes());
  check_shape(kDequantizeKv, {"scale", scale}, codes.sym_sizes().slice(0, codes.dim() - 1),
              "that of codes without its last dimension");
}

void check_lengths(const char* op, const at::Tensor& cache_seqlens, std::int64_t capacity,
                   std::int64_t appended) {
  const std::int32_t* seqlens = cache_seqlens.const_data_ptr<std::int32_t>();
  for (std::int64_t b = 0; b < cache_seqlens.size(0); ++b) {
    TORCH_CHECK_VALUE(seqlens[b] >= 0, op, ": expected cache_seqlens[", b, "] >= 0, got ", seqlens[b]);
    const std::int64_t total = seqlens[b] + appended;
    TORCH_CHECK_VALUE(total <= capacity, op, ": expected cache_seqlens[", b, "]",
                      appended > 0 ? " + " + std::to_string(appended) : std::string(), " <= ", capacity,
                      " (capacity of k_cache), got ", total);
  }
}

void check_separate_memory(const char* op, const CacheTensors& cache,
                           std::initializer_list<NamedTensor> inputs) {
  MemoryRanges ranges = memory_of(cache);
  const std::size_t written = ranges.size();
  for (const NamedTensor& input : inputs) ranges.push_back(memory_of(input));
  ranges.push_back(memory_of({"cache_seqlens", cache.cache_seqlens}));
  check_separate(op, ranges, written);
}

void check_separate_buffers(const char* op, const DecodeBuffers& buffers, const CacheTensors& cache,
                            std::initializer_list<NamedTensor> inputs) {
  MemoryRanges ranges;
  if (is_given(buffers.workspace)) ranges.push_back(memory_of({"workspace", *buffers.workspace}));
  if (is_given(buffers.softmax_lse)) ranges.push_back(memory_of({"softmax_lse", *buffers.softmax_lse}));
  const std::size_t written = ranges.size();
  if (written == 0) return;
  for (const MemoryRange& range : memory_of(cache)) ranges.push_back(range);
  for (const NamedTensor& input : inputs) ranges.push_back(memory_of(input));
  ranges.push_back(memory_of({"cache_seqlens", cache.cache_seqlens}));
  check_separate(op, ranges, written);
}

void check_aligned(const char* op, const NamedTensor& arg) {
  constexpr std::uintptr_t kVectorBytes = 16;  // of the widest load and store
  const std::uintptr_t past = reinterpret_cast<std::uintptr_t>(arg.tensor.const_data_ptr()) % kVectorBytes;
  TORCH_CHECK_VALUE(past == 0, op, ": expected ", arg.name, " to start at a multiple of ", kVectorBytes,
                    " bytes, got an address that is ", past, " past one (a view into another tensor?)");
}

void check_workspace_memory(const char* op, const at::Tensor& workspace, std::int64_t needed_bytes) {
  check_aligned(op, {"workspace", workspace});
  TORCH_CHECK_VALUE(workspace.numel() == needed_bytes, op, ": expected a workspace of ", needed_bytes,
                    " bytes (as ", kDecodeWorkspace, " makes for this q and k_cache), got ",
                    workspace.numel());
}

}  // namespace kvfuse::ops
