#include "csrc/model/gpt2_checkpoint.h"

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "csrc/model/checkpoint_folder.h"

namespace kvfuse {
namespace {

constexpr std::array<std::string_view, 4> kFloatDtypes = {"F32", "F16", "BF16", "F64"};
constexpr std::size_t kMaxListed = 10;
constexpr std::size_t kCompareBytes = 1 << 20;

// What differs from the expected model: all of it is counted, the first ten are kept.
class Differences {
 public:
  void add(std::string text) {
    if (listed_.size() < kMaxListed) listed_.push_back(std::move(text));
    ++count_;
  }

  void throw_if_any(const std::filesystem::path& path, const ModelConfig& config) const {
    if (count_ == 0) return;
    std::string message = "expected GPT-2 with n_layer " + std::to_string(config.n_layer) + ", n_head " +
                          std::to_string(config.n_head) + ", n_embd " + std::to_string(config.n_embd) +
                          ", block_size " + std::to_string(config.block_size) + ", vocab_size " +
                          std::to_string(config.vocab_size) + (config.bias ? "" : ", no biases") + "; got " +
                          std::to_string(count_) + (count_ == 1 ? " difference: " : " differences: ");
    for (std::size_t i = 0; i < listed_.size(); ++i) message += (i == 0 ? "" : "; ") + listed_[i];
    if (count_ > listed_.size()) message += "; and " + std::to_string(count_ - listed_.size()) + " more";
    throw ModelFileError(path, message);
  }

 private:
  std::vector<std::string> listed_;
  std::size_t count_ = 0;
};

using TensorsByName = std::map<std::string, StoredTensor>;

std::string plain_name(std::string_view name) {
  for (const std::string_view prefix : {"_orig_mod.", "transformer."})
    if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  return std::string(name);
}

TensorsByName tensors_by_plain_name(const std::vector<SafetensorsFile>& files, Differences& differences) {
  TensorsByName tensors;
  for (const SafetensorsFile& file : files)
    for (const TensorEntry& entry : file.tensors()) {
      const auto [place, is_new] = tensors.try_emplace(plain_name(entry.name), &file, &entry);
      if (!is_new)
        differences.add(in_quotes(entry.name) + " and " + in_quotes(place->second.entry->name) +
                        " name the same tensor");
    }
  return tensors;
}

// The rule is in the header. A file without a usable QKV weight is taken for Hugging Face's and refused
// later.
bool linears_are_transposed(const TensorsByName& tensors) {
  const auto qkv = tensors.find("h.0.attn.c_attn.weight");
  if (qkv == tensors.end()) return true;
  const std::vector<std::int64_t>& shape = qkv->second.entry->shape;
  return !(shape.size() == 2 && shape[0] > shape[1]);
}

bool same_values(const StoredTensor& a, const StoredTensor& b) {
  if (a.entry->dtype.name != b.entry->dtype.name || a.entry->shape != b.entry->shape) return false;
  std::vector<std::byte> a_bytes(kCompareBytes), b_bytes(kCompareBytes);
  for (std::uint64_t from = 0; from < a.entry->bytes; from += kCompareBytes) {
    const std::size_t count = std::min<std::uint64_t>(kCompareBytes, a.entry->bytes - from);
    a.file->read(*a.entry, from, std::span(a_bytes).first(count));
    b.file->read(*b.entry, from, std::span(b_bytes).first(count));
    if (!std::equal(a_bytes.begin(), a_bytes.begin() + count, b_bytes.begin())) return false;
  }
  return true;
}

// The head shares the token embedding: it may be stored twice, or under the head's name alone.
void merge_head(TensorsByName& tensors, Differences& differences) {
  auto head = tensors.extract("lm_head.weight");
  if (head.empty()) return;
  const auto embedding = tensors.find("wte.weight");
  if (embedding == tensors.end()) {
    head.key() = "wte.weight";
    tensors.insert(std::move(head));
  } else if (!same_values(head.mapped(), embedding->second)) {
    differences.add(in_quotes(head.mapped().entry->name) + " differs from " +
                    in_quotes(embedding->second.entry->name) + " (expected a tied head: the same values)");
  }
}

// The causal mask that both projects once kept beside the weights.
void drop_mask_buffers(TensorsByName& tensors, std::int64_t n_layer) {
  for (std::int64_t layer = 0; layer < n_layer; ++layer)
    for (const char* buffer : {".attn.bias", ".attn.masked_bias"})
      tensors.erase("h." + std::to_string(layer) + buffer);
}

void check_tensor(const StoredTensor& stored, const TensorSpec& spec, Differences& differences) {
  const TensorEntry& entry = *stored.entry;
  std::vector<std::int64_t> shape = spec.shape;
  if (stored.transposed) std::reverse(shape.begin(), shape.end());
  if (entry.shape != shape)
    differences.add(in_quotes(entry.name) + " has shape " + shape_text(entry.shape) + ", expected " +
                    shape_text(shape));
  const bool is_float =
      std::find(kFloatDtypes.begin(), kFloatDtypes.end(), entry.dtype.name) != kFloatDtypes.end();
  if (spec.dtype.empty() ? !is_float : entry.dtype.name != spec.dtype)
    differences.add(in_quotes(entry.name) + " has dtype " + std::string(entry.dtype.name) + ", expected " +
                    std::string(spec.dtype.empty() ? "F32, F16, BF16 or F64" : spec.dtype));
}

// What a file says that holds quantised weights; kModel of any other.
struct QuantizedFormat {
  WeightDtype weight_dtype = WeightDtype::kModel;
  bool gelu_tanh = true;
};
QuantizedFormat quantized_format(const std::vector<SafetensorsFile>& files) {
  if (files.size() != 1 || !files[0].metadata().contains(kQuantizedVersionKey)) return {};
  const auto expect = [&](const char* key, std::initializer_list<std::string_view> known) {
    const auto found = files[0].metadata().find(key);
    const std::string got = found == files[0].metadata().end() ? "none" : found->second;
    std::string list;
    for (const std::string_view word : known) list += (list.empty() ? "" : " or ") + std::string(word);
    if (std::find(known.begin(), known.end(), got) == known.end())
      throw ModelFileError(files[0].path(),
                           "metadata " + std::string(key) + ": expected " + list + ", got " + in_quotes(got));
    return got;
  };
  expect(kQuantizedVersionKey, {kQuantizedVersion});
  const std::string dtype =
      expect(kWeightDtypeKey, {weight_dtype_name(WeightDtype::kInt8), weight_dtype_name(WeightDtype::kInt4)});
  return {.weight_dtype =
              dtype == weight_dtype_name(WeightDtype::kInt4) ? WeightDtype::kInt4 : WeightDtype::kInt8,
          .gelu_tanh = expect(kGeluTanhKey, {"true", "false"}) == "true"};
}

}  // namespace

std::vector<TensorSpec> gpt2_tensors(const ModelConfig& config, WeightDtype weight_dtype) {
  const std::int64_t n = config.n_embd;
  std::vector<TensorSpec> specs;
  const auto add_matrix = [&](const std::string& name, std::int64_t out, std::int64_t in, bool linear) {
    switch (linear || weight_dtype == WeightDtype::kModel ? weight_dtype : WeightDtype::kInt8) {
      case WeightDtype::kModel:
        specs.push_back({name, {out, in}, linear});
        break;
      case WeightDtype::kInt8:
        specs.push_back({name, {out, in}, linear, "I8"});
        specs.push_back({name + "_scale", {out}, /*linear=*/false, "F32"});
        break;
      case WeightDtype::kInt4:
        specs.push_back({name, {out, in / 2}, linear, "U8"});
        specs.push_back({name + "_scale", {out, in / kInt4Group}, /*linear=*/false, "F16"});
    }
  };
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    const std::int64_t out = shape[0];
    if (shape.size() == 2)
      add_matrix(name + ".weight", out, shape[1], /*linear=*/true);
    else
      specs.push_back({name + ".weight", std::move(shape)});
    if (config.bias) specs.push_back({name + ".bias", {out}});
  };
  add_matrix("wte.weight", config.vocab_size, n, /*linear=*/false);
  specs.push_back({"wpe.weight", {config.block_size, n}});
  for (std::int64_t layer = 0; layer < config.n_layer; ++layer) {
    const std::string prefix = "h." + std::to_string(layer) + ".";
    add(prefix + "ln_1", {n});
    add(prefix + "attn.c_attn", {3 * n, n});
    add(prefix + "attn.c_proj", {n, n});
    add(prefix + "ln_2", {n});
    add(prefix + "mlp.c_fc", {4 * n, n});
    add(prefix + "mlp.c_proj", {n, 4 * n});
  }
  add("ln_f", {n});
  return specs;
}

Gpt2Checkpoint open_gpt2_checkpoint(const std::filesystem::path& path, const ModelConfig& expected) {
  check_model_config(expected);
  CheckpointFolder folder = open_checkpoint_folder(path);
  Differences differences;
  const std::optional<bool> gelu_tanh =
      check_hugging_face_config(folder.config, expected, [&](std::string text) { differences.add(text); });

  Gpt2Checkpoint checkpoint;
  checkpoint.files = std::move(folder.files);
  TensorsByName stored = tensors_by_plain_name(checkpoint.files, differences);
  const QuantizedFormat quantized = quantized_format(checkpoint.files);
  checkpoint.weight_dtype = quantized.weight_dtype;
  if (quantized.weight_dtype == WeightDtype::kInt4 && expected.n_embd % kInt4Group != 0)
    differences.add("int4 weights need n_embd to be a multiple of " + std::to_string(kInt4Group));
  const bool has_codes = quantized.weight_dtype != WeightDtype::kModel;
  const bool transposed = !has_codes && linears_are_transposed(stored);
  checkpoint.gelu_tanh = gelu_tanh.value_or(has_codes ? quantized.gelu_tanh : transposed);
  merge_head(stored, differences);
  drop_mask_buffers(stored, expected.n_layer);

  for (const TensorSpec& spec : gpt2_tensors(expected, checkpoint.weight_dtype)) {
    auto found = stored.extract(spec.name);
    if (found.empty()) {
      differences.add(in_quotes(spec.name) + " is missing");
      continue;
    }
    found.mapped().transposed = spec.linear && transposed;
    check_tensor(found.mapped(), spec, differences);
    checkpoint.tensors.insert(std::move(found));
  }
  for (const auto& [name, extra] : stored)
    differences.add(in_quotes(extra.entry->name) + " is not part of the model");
  differences.throw_if_any(path, expected);
  return checkpoint;
}

}  // namespace kvfuse
