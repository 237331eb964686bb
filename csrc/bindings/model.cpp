// GPT-2 in C++ as Python sees it: weights, model and cache. Converts, decides nothing.
#include <ATen/ops/aminmax.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "csrc/bindings/computing.h"
#include "csrc/bindings/json.h"
#include "csrc/bindings/model.h"
#include "csrc/model/generate.h"
#include "csrc/model/packed_weights.h"
#include "csrc/model/prepared_weights.h"
#include "csrc/records/run_facts.h"
#include "csrc/versions/registry.h"

namespace py = pybind11;

namespace kvfuse {
namespace {

using Lengths = std::vector<std::int64_t>;

TokenBatch token_batch(const Gpt2& model, const at::Tensor& tokens, const Lengths& lengths) {
  TokenBatch batch(tokens, lengths);
  check_token_batch("tokens", batch);
  const auto [least, most] = at::aminmax(tokens);
  const std::int64_t bad =
      least.item<std::int64_t>() < 0 ? least.item<std::int64_t>() : most.item<std::int64_t>();
  if (bad < 0 || bad >= model.config().vocab_size)
    throw std::invalid_argument("tokens: expected ids from 0 to " +
                                std::to_string(model.config().vocab_size - 1) +
                                " (the model's vocab_size), got " + std::to_string(bad));
  batch.tokens = tokens.to(model.weights().device());
  return batch;
}

std::uint64_t checked_seed(std::int64_t seed) {
  if (seed < 0) throw std::invalid_argument("seed: expected a number >= 0, got " + std::to_string(seed));
  return static_cast<std::uint64_t>(seed);
}

// `weights` that nobody else holds.
Gpt2Weights packed(Gpt2Weights weights) {
  pack_weights(std::array{&weights});
  return weights;
}

PreparedModel prepare(const Gpt2Weights& weights, const std::string& version,
                      const std::vector<std::string>& transforms,
                      const std::optional<at::Tensor>& calibration) {
  const Strategy& strategy = find_version(version);
  if (strategy.q_alignment == QAlignment::kFit && !calibration)
    throw std::invalid_argument("Gpt2: expected calibration tokens for version " + version +
                                ", which fits its layers on them, got none");
  const Transforms chosen = find_transforms(transforms);
  const at::Tensor tokens =
      calibration ? calibration->to(weights.device(), at::kLong).flatten() : at::Tensor();
  FittedLayers fitted = prepare_weights(weights, strategy, chosen, tokens);
  return {Gpt2(std::move(fitted.weights)), strategy, std::move(fitted.fits)};
}

std::optional<KvCache> make_cache(const PreparedModel& self, std::int64_t batch,
                                  std::optional<std::int64_t> capacity) {
  if (!self.strategy.use_cache) return std::nullopt;
  const ModelConfig& config = self.model.config();
  return KvCache(config, self.strategy, batch, capacity.value_or(config.block_size),
                 self.model.weights().options());
}

at::Tensor forward(const PreparedModel& self, const at::Tensor& tokens, const Lengths& lengths,
                   KvCache* cache, bool every_token) {
  return self.model.forward(token_batch(self.model, tokens, lengths), cache,
                            every_token ? LogitsOf::kEveryToken : LogitsOf::kLastToken);
}

at::Tensor generate_tokens(const PreparedModel& self, const at::Tensor& tokens, const Lengths& lengths,
                           std::int64_t new_tokens, const SamplerOptions& sampling,
                           const OverflowPolicy& overflow, const py::object& on_token) {
  const TokenBatch prompt = token_batch(self.model, tokens, lengths);
  constexpr std::int64_t kMostNewTokens = std::int64_t{1} << 40;  // far from where sums overflow
  if (new_tokens < 0 || new_tokens > kMostNewTokens)
    throw std::invalid_argument("generate: expected 0 to " + std::to_string(kMostNewTokens) +
                                " new tokens, got " + std::to_string(new_tokens));
  const bool overflows = prompt.longest() + new_tokens > self.model.config().block_size;
  // The last token is not run, so the cache ends one short of it.
  const std::int64_t most = self.model.config().block_size;
  const std::int64_t needed = std::max<std::int64_t>(1, prompt.longest() + new_tokens - 1);
  std::optional<KvCache> cache = make_cache(self, tokens.size(0), std::min(most, needed));
  Sampler sampler(sampling);
  at::Tensor generated;
  Interruptible call(/*aside=*/prompt.tokens.device().is_cpu());
  call.run([&] {
    generated = generate(self.model, cache ? &*cache : nullptr, prompt, new_tokens, sampler,
                         {.on_token = [&](const at::Tensor& newest) { return call.tell(on_token, newest); },
                          .on_phase = {},
                          .overflow = overflows ? overflow : OverflowPolicy{}})
                    .tokens;
  });
  return generated;
}

json fits_json(const PreparedModel& self) {
  json list = json::array();
  for (const LayerFit& fit : self.fits)
    list.push_back(
        {{"layer", fit.layer}, {"owner", fit.owner}, {"k_error", fit.k_error}, {"v_error", fit.v_error}});
  return list;
}

void bind_config(py::module_& module) {
  const ModelConfig defaults;
  py::class_<ModelConfig>(module, "ModelConfig")
      .def(py::init([](std::int64_t n_layer, std::int64_t n_head, std::int64_t n_embd,
                       std::int64_t block_size, std::int64_t vocab_size, double dropout, bool bias) {
             const ModelConfig config{n_layer, n_head, n_embd, block_size, vocab_size, dropout, bias};
             check_model_config(config);
             return config;
           }),
           py::kw_only(), py::arg("n_layer") = defaults.n_layer, py::arg("n_head") = defaults.n_head,
           py::arg("n_embd") = defaults.n_embd, py::arg("block_size") = defaults.block_size,
           py::arg("vocab_size") = defaults.vocab_size, py::arg("dropout") = defaults.dropout,
           py::arg("bias") = defaults.bias)
      .def_readonly("n_layer", &ModelConfig::n_layer)
      .def_readonly("n_head", &ModelConfig::n_head)
      .def_readonly("n_embd", &ModelConfig::n_embd)
      .def_readonly("block_size", &ModelConfig::block_size)
      .def_readonly("vocab_size", &ModelConfig::vocab_size)
      .def_readonly("dropout", &ModelConfig::dropout)
      .def_readonly("bias", &ModelConfig::bias);
  module.def("preset_config", &preset_config);
  module.def("preset_names", &preset_names);
}

void bind_options(py::module_& module) {
  const SamplerOptions defaults;
  py::class_<SamplerOptions>(module, "SamplerOptions")
      .def(py::init([](double temperature, std::int64_t top_k, double top_p, std::int64_t seed) {
             return SamplerOptions{temperature, top_k, top_p, checked_seed(seed)};
           }),
           py::kw_only(), py::arg("temperature") = defaults.temperature, py::arg("top_k") = defaults.top_k,
           py::arg("top_p") = defaults.top_p, py::arg("seed") = defaults.seed);
  py::class_<OverflowPolicy>(module, "OverflowPolicy")
      .def(py::init([](const std::string& kind, std::int64_t keep, std::int64_t sink) {
             const OverflowPolicy policy{find_overflow(kind), keep, sink};
             if (overflow_name(policy.kind) != kind)
               throw std::invalid_argument("overflow: expected error, slide or sink, got \"" + kind + "\"");
             return policy;
           }),
           py::arg("kind") = "error", py::arg("keep") = 0, py::arg("sink") = 0);
}

void bind_cache(py::module_& module) {
  py::class_<KvCache>(module, "KvCache")
      .def_property_readonly("batch", &KvCache::batch)
      .def_property_readonly("capacity", &KvCache::capacity)
      .def_property_readonly("lengths", &KvCache::lengths)
      .def_property_readonly("nbytes", &KvCache::byte_size)
      .def("crop", &KvCache::crop, Computing())
      .def("reset", &KvCache::reset, Computing());
}

void bind_weights(py::module_& module) {
  py::class_<Gpt2Weights>(module, "Gpt2Weights")
      .def_static(
          "load",
          [](const std::filesystem::path& path, const ModelConfig& config, at::ScalarType dtype,
             at::Device device, bool strict) {
            return packed(load_weights(path, config, dtype, {.strict = strict}).to(device));
          },
          Computing())
      .def_static(
          "random",
          [](const ModelConfig& config, at::ScalarType dtype, at::Device device, std::int64_t seed) {
            return packed(random_weights(config, dtype, checked_seed(seed)).to(device));
          },
          Computing())
      .def_readonly("warnings", &Gpt2Weights::warnings)
      .def_property_readonly("nbytes", &Gpt2Weights::byte_size);
  module.def("random_token_ids",
             [](std::vector<std::int64_t> shape, std::int64_t vocab_size, std::int64_t seed) {
               return random_token_ids(shape, vocab_size, checked_seed(seed));
             });
}

}  // namespace

void bind_model(py::module_& module) {
  bind_config(module);
  bind_options(module);
  bind_cache(module);
  bind_weights(module);
  py::class_<PreparedModel>(module, "Gpt2")
      .def(py::init(&prepare), Computing())
      .def_property_readonly("config", [](const PreparedModel& self) { return self.model.config(); })
      .def_property_readonly("version", [](const PreparedModel& self) { return self.strategy.name; })
      .def_property_readonly("layer_fits", &fits_json)
      .def_property_readonly(
          "model_config",
          [](const PreparedModel& self) { return model_config_json(self.model.config(), self.strategy); })
      .def_property_readonly("nbytes",
                             [](const PreparedModel& self) { return self.model.weights().byte_size(); })
      .def("make_cache", &make_cache, Computing())
      .def("forward", &forward, Computing())
      .def("generate", &generate_tokens, Computing());
}

}  // namespace kvfuse
