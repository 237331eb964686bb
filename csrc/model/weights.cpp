#include "csrc/model/weights.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <cmath>
#include <map>
#include <random>
#include <span>
#include <stdexcept>
#include <utility>

#include "csrc/model/gpt2_checkpoint.h"

namespace kvfuse {
namespace {

using TensorsByName = std::map<std::string, at::Tensor>;

struct LayerField {
  at::Tensor LayerWeights::*field;
  const char* name;
};
constexpr std::array<LayerField, 16> kLayerFields = {{
    {&LayerWeights::ln_1_weight, "ln_1.weight"},
    {&LayerWeights::ln_1_bias, "ln_1.bias"},
    {&LayerWeights::qkv_weight, "attn.c_attn.weight"},
    {&LayerWeights::qkv_bias, "attn.c_attn.bias"},
    {&LayerWeights::attn_proj_weight, "attn.c_proj.weight"},
    {&LayerWeights::attn_proj_bias, "attn.c_proj.bias"},
    {&LayerWeights::ln_2_weight, "ln_2.weight"},
    {&LayerWeights::ln_2_bias, "ln_2.bias"},
    {&LayerWeights::fc_weight, "mlp.c_fc.weight"},
    {&LayerWeights::fc_bias, "mlp.c_fc.bias"},
    {&LayerWeights::mlp_proj_weight, "mlp.c_proj.weight"},
    {&LayerWeights::mlp_proj_bias, "mlp.c_proj.bias"},
    {&LayerWeights::qkv_scale, "attn.c_attn.weight_scale"},
    {&LayerWeights::attn_proj_scale, "attn.c_proj.weight_scale"},
    {&LayerWeights::fc_scale, "mlp.c_fc.weight_scale"},
    {&LayerWeights::mlp_proj_scale, "mlp.c_proj.weight_scale"},
}};

std::string layer_tensor(std::size_t layer, const LayerField& field) {
  return "h." + std::to_string(layer) + "." + field.name;
}

// Biases and scales that `tensors` lacks stay undefined.
Gpt2Weights assemble(const ModelConfig& config, TensorsByName tensors) {
  const auto take = [&](const std::string& name) { return std::move(tensors[name]); };
  Gpt2Weights weights;
  weights.config = config;
  weights.token_embedding = take("wte.weight");
  weights.token_embedding_scale = take("wte.weight_scale");
  weights.position_embedding = take("wpe.weight");
  weights.layers.resize(static_cast<std::size_t>(config.n_layer));
  for (std::size_t i = 0; i < weights.layers.size(); ++i)
    for (const LayerField& row : kLayerFields) weights.layers[i].*row.field = take(layer_tensor(i, row));
  weights.ln_f_weight = take("ln_f.weight");
  weights.ln_f_bias = take("ln_f.bias");
  return weights;
}

void check_dtype(at::ScalarType dtype) {
  for (const at::ScalarType known : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble})
    if (dtype == known) return;
  throw std::invalid_argument(std::string("weights: expected dtype Float, BFloat16, Half or Double, got ") +
                              at::toString(dtype));
}

at::ScalarType stored_dtype(const TensorEntry& entry) {
  if (entry.dtype.name == "F16") return at::kHalf;
  if (entry.dtype.name == "BF16") return at::kBFloat16;
  if (entry.dtype.name == "I8") return at::kChar;
  if (entry.dtype.name == "U8") return at::kByte;
  return entry.dtype.name == "F64" ? at::kDouble : at::kFloat;
}

bool is_codes(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kChar || tensor.scalar_type() == at::kByte;
}

// Codes and their scales stay what they are.
at::Tensor read_tensor(const std::string& name, const StoredTensor& stored, at::ScalarType dtype) {
  at::Tensor raw = at::empty(stored.entry->shape, stored_dtype(*stored.entry));
  stored.file->read(*stored.entry, 0, {static_cast<std::byte*>(raw.data_ptr()), raw.nbytes()});
  if (stored.transposed) raw = raw.t();
  if (is_codes(raw) || name.ends_with("_scale")) return raw;
  return raw.to(dtype).contiguous();
}

// Counts after the conversion: what float16 cannot hold is infinite there.
std::int64_t count_nonfinite(const at::Tensor& tensor) {
  const auto [least, most] = at::aminmax(tensor);  // both NaN where one element is
  if (std::isfinite(least.item<double>()) && std::isfinite(most.item<double>())) return 0;
  return tensor.numel() - at::isfinite(tensor).sum().item<std::int64_t>();
}

}  // namespace

std::vector<NamedTensor> Gpt2Weights::tensors() {
  std::vector<NamedTensor> all = {{"wte.weight", &token_embedding},
                                  {"wte.weight_scale", &token_embedding_scale},
                                  {"wpe.weight", &position_embedding},
                                  {"ln_f.weight", &ln_f_weight},
                                  {"ln_f.bias", &ln_f_bias}};
  for (std::size_t i = 0; i < layers.size(); ++i)
    for (const LayerField& row : kLayerFields) all.push_back({layer_tensor(i, row), &(layers[i].*row.field)});
  std::erase_if(all, [](const NamedTensor& named) { return !named.tensor->defined(); });
  return all;
}

WeightDtype Gpt2Weights::weight_dtype() const {
  if (!token_embedding_scale.defined()) return WeightDtype::kModel;
  return layers.front().fc_weight.scalar_type() == at::kChar ? WeightDtype::kInt8 : WeightDtype::kInt4;
}

std::int64_t Gpt2Weights::byte_size() const {
  Gpt2Weights views = *this;
  std::size_t bytes = 0;
  for (const NamedTensor& named : views.tensors()) bytes += named.tensor->nbytes();
  return static_cast<std::int64_t>(bytes);
}

Gpt2Weights Gpt2Weights::to(at::Device device) const {
  Gpt2Weights moved = *this;
  for (const NamedTensor& named : moved.tensors()) *named.tensor = named.tensor->to(device);
  return moved;
}

Gpt2Weights load_weights(const std::filesystem::path& file_or_folder, const ModelConfig& expected,
                         at::ScalarType dtype, const LoadOptions& options) {
  check_dtype(dtype);
  const Gpt2Checkpoint checkpoint = open_gpt2_checkpoint(file_or_folder, expected);
  TensorsByName tensors;
  std::vector<std::string> warnings;
  for (const auto& [name, stored] : checkpoint.tensors) {
    const at::Tensor& tensor = tensors[name] = read_tensor(name, stored, dtype);
    if (tensor.scalar_type() == at::kChar && std::get<0>(at::aminmax(tensor)).item<std::int64_t>() < -127)
      throw ModelFileError(stored.file->path(), "tensor " + in_quotes(stored.entry->name) +
                                                    ": expected codes of -127 to 127, got -128");
    if (is_codes(tensor)) continue;
    const std::int64_t nonfinite = count_nonfinite(tensor);
    if (nonfinite == 0) continue;
    const ModelFileError finding(
        stored.file->path(), "tensor " + in_quotes(stored.entry->name) + ": " + std::to_string(nonfinite) +
                                 " of " + std::to_string(tensor.numel()) + " values are NaN or infinite as " +
                                 at::toString(dtype));
    if (options.strict) throw finding;
    warnings.emplace_back(finding.what());
  }
  Gpt2Weights weights = assemble(expected, std::move(tensors));
  weights.gelu_tanh = checkpoint.gelu_tanh;
  weights.warnings = std::move(warnings);
  return weights;
}

Gpt2Weights random_weights(const ModelConfig& config, at::ScalarType dtype, std::uint64_t seed,
                           double std_dev) {
  check_model_config(config);
  check_dtype(dtype);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const double residual_std_dev = std_dev / std::sqrt(2.0 * static_cast<double>(config.n_layer));
  const auto draw = [&](const TensorSpec& spec) -> at::Tensor {
    if (spec.name.ends_with(".bias")) return at::zeros(spec.shape, dtype);
    if (spec.shape.size() == 1) return at::ones(spec.shape, dtype);
    const double spread = spec.name.ends_with(".c_proj.weight") ? residual_std_dev : std_dev;
    return at::empty(spec.shape, at::kFloat).normal_(0.0, spread, generator).to(dtype);
  };
  TensorsByName tensors;
  for (const TensorSpec& spec : gpt2_tensors(config)) tensors[spec.name] = draw(spec);
  return assemble(config, std::move(tensors));
}

at::Tensor random_token_ids(at::IntArrayRef shape, std::int64_t vocab_size, std::uint64_t seed) {
  at::Tensor tokens = at::empty(shape, at::TensorOptions().dtype(at::kLong));
  std::mt19937_64 random(seed);
  auto* ids = tokens.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < tokens.numel(); ++i)
    ids[i] = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(vocab_size));
  return tokens;
}

}  // namespace kvfuse
