// The roofline toolkit as kvfuse._C.roofline: results are dicts, inputs the C++ values themselves.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "csrc/bindings/json.h"
#include "csrc/bindings/roofline_json.h"
#include "csrc/model/config.h"
#include "csrc/roofline/check.h"

namespace py = pybind11;

namespace kvfuse {
namespace {

namespace rl = roofline;

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::span<const float> values_of(const Floats& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

// A name of a strategy, or of a format that everything is in.
rl::OperatorPrecisions precisions_of(const std::string& strategy) {
  for (const std::string& name : rl::precision_names())
    if (name == strategy) return rl::all_in(rl::parse_precision(strategy));
  return rl::find_mixed_precision(strategy).precisions;
}

rl::ModelShape gpt2_preset(const std::string& name) {
  const ModelConfig config = preset_config(name);
  rl::ModelShape model = rl::gpt2_shape(config.n_layer, config.n_head, config.n_embd, config.vocab_size,
                                        config.block_size, config.bias);
  model.name = name;
  return model;
}

std::vector<std::string> model_names() {
  std::vector<std::string> names = preset_names();
  for (const rl::ModelShape& model : rl::llama_presets()) names.push_back(model.name);
  return names;
}

rl::ModelShape model_preset(const std::string& name) {
  const auto named = [&](const std::string& known) {
    return rl::normal_name(known) == rl::normal_name(name);
  };
  for (const std::string& known : preset_names())
    if (named(known)) return gpt2_preset(known);
  for (const rl::ModelShape& model : rl::llama_presets())
    if (named(model.name)) return model;
  rl::unknown_name("model", name, model_names());
}

// What a model of a name or of sizes is checked for, once, here.
rl::ModelShape made_model(rl::ModelShape model) {
  rl::check_model(model);
  return model;
}

rl::EfficiencyProfile efficiency_profile(bool reference) {
  return reference ? rl::EfficiencyProfile::kReference : rl::EfficiencyProfile::kPapers;
}

void bind_hardware(py::module_& module) {
  py::class_<rl::Hardware>(module, "Hardware")
      .def_readonly("name", &rl::Hardware::name)
      .def("as_dict", [](const rl::Hardware& self) { return rl::to_json(self); })
      .def("critical_intensity", [](const rl::Hardware& self, const std::string& precision) {
        return rl::critical_intensity(self, rl::parse_precision(precision));
      });
  py::class_<rl::HardwareRegistry>(module, "HardwareRegistry")
      .def(py::init([] { return rl::HardwareRegistry::builtin(); }))
      .def("add_json", [](rl::HardwareRegistry& self, const std::string& text,
                          const std::string& origin) { self.add(text, origin); })
      .def("add", [](rl::HardwareRegistry& self, const rl::Hardware& hardware) { self.add(hardware); })
      .def("find", [](const rl::HardwareRegistry& self, const std::string& name,
                      const std::string& profile) { return self.find(name, rl::parse_profile(profile)); })
      .def("names", &rl::HardwareRegistry::names)
      .def("all", &rl::HardwareRegistry::all)
      .def("with_reference_figures", &rl::HardwareRegistry::with_reference_figures);
}

void bind_models(py::module_& module) {
  using rl::ModelShape;
  py::class_<ModelShape>(module, "ModelShape")
      .def(py::init([](const std::string& name, const std::string& architecture, std::int64_t n_layer,
                       std::int64_t n_embd, std::int64_t n_head, std::int64_t n_kv_head,
                       std::int64_t head_dim, std::int64_t d_ff, std::int64_t vocab_size,
                       std::int64_t block_size, std::int64_t borrowing_layers, bool bias) {
             return made_model({name, rl::parse_architecture(architecture), n_layer, n_embd, n_head,
                                n_kv_head, head_dim, d_ff, vocab_size, block_size, borrowing_layers, bias});
           }),
           py::kw_only(), py::arg("name"), py::arg("architecture"), py::arg("n_layer"), py::arg("n_embd"),
           py::arg("n_head"), py::arg("n_kv_head"), py::arg("head_dim"), py::arg("d_ff"),
           py::arg("vocab_size"), py::arg("block_size"), py::arg("borrowing_layers"), py::arg("bias"))
      .def("as_dict", [](const ModelShape& self) { return rl::to_json(self); })
      .def("count_weights", [](const ModelShape& self) { return rl::to_json(rl::count_weights(self)); });
  module.def("model_names", &model_names);
  module.def("model_preset", &model_preset);
  module.def("published_model", &rl::published_model);
  module.def("kv_cache_bytes", [](const ModelShape& model, std::int64_t tokens, std::int64_t batch,
                                  const std::string& precision, std::int64_t recent_window) {
    const rl::KvStorage storage{.precision = rl::parse_precision(precision), .recent_window = recent_window};
    rl::check_cache(tokens, batch, storage);
    return rl::kv_cache_bytes(model, static_cast<double>(tokens), static_cast<double>(batch), storage);
  });
  module.def("kv_crossover_tokens", [](const ModelShape& model, const std::string& strategy, double batch) {
    const rl::OperatorPrecisions precisions = precisions_of(strategy);
    return rl::kv_crossover_tokens(model, rl::resident_weight_bytes(model, precisions), batch,
                                   precisions.kv());
  });
}

void bind_predictions(py::module_& module) {
  using rl::Hardware;
  using rl::ModelShape;
  module.def("predict_gemm", [](const Hardware& hardware, std::int64_t M, std::int64_t N, std::int64_t K,
                                const std::string& precision, bool payload_only) {
    const auto accounting = payload_only ? rl::Accounting::kPayloadOnly : rl::Accounting::kComplete;
    return rl::to_json(rl::predict_gemm(hardware, {M, N, K}, rl::parse_precision(precision),
                                        {.activations = std::nullopt, .accounting = accounting}));
  });
  module.def("predict_pass", [](const Hardware& hardware, const ModelShape& model, std::int64_t batch,
                                std::int64_t past, std::int64_t tokens, std::int64_t scored,
                                bool fused_attention, const std::string& strategy, bool count_activations) {
    return rl::to_json(rl::predict_pass(hardware, model, {batch, past, tokens, scored, fused_attention},
                                        precisions_of(strategy), {count_activations}));
  });
  module.def("predict_generation", [](const Hardware& hardware, const ModelShape& model, std::int64_t batch,
                                      std::int64_t prompt_length, std::int64_t new_tokens,
                                      const std::string& strategy, bool count_activations) {
    return rl::to_json(rl::predict_generation(hardware, model, batch, prompt_length, new_tokens,
                                              precisions_of(strategy), {count_activations}));
  });
  module.def("compare_attention", [](const Hardware& hardware, std::int64_t batch, std::int64_t n_head,
                                     std::int64_t n_kv_head, std::int64_t head_dim, std::int64_t query_tokens,
                                     std::int64_t kv_len, bool causal, double kept_share, bool reference) {
    return rl::list_json(rl::compare_attention(
        hardware, {batch, n_head, n_kv_head, head_dim, query_tokens, kv_len, causal, kept_share},
        efficiency_profile(reference)));
  });
  module.def("recommend",
             [](const Hardware& hardware, const ModelShape& model, const std::string& phase,
                std::int64_t seq_len, std::int64_t batch, std::optional<double> max_quality_loss_pct,
                std::optional<double> min_speedup, bool allow_storage_only, bool count_activations) {
               return rl::to_json(rl::recommend(hardware, {model,
                                                           rl::parse_phase(phase),
                                                           seq_len,
                                                           batch,
                                                           max_quality_loss_pct,
                                                           min_speedup,
                                                           allow_storage_only,
                                                           {count_activations}}));
             });
  module.def("published_results", [] { return rl::list_json(rl::published_results()); });
}

void bind_sweeps(py::module_& module) {
  module.def("sweep_gemm", [](const std::vector<rl::Hardware>& machines,
                              const std::vector<std::array<std::int64_t, 3>>& shapes,
                              const std::vector<std::string>& precisions) {
    std::vector<rl::GemmShape> products;
    for (const auto& [M, N, K] : shapes) products.push_back({M, N, K});
    std::vector<rl::Precision> formats;
    for (const std::string& name : precisions) formats.push_back(rl::parse_precision(name));
    py::list points;  // one by one: a million points as JSON are gigabytes
    for (const rl::GemmPoint& point : rl::sweep_gemm(machines, products, formats)) {
      json one = rl::to_json(point.prediction);
      one["hardware"] = point.hardware;
      points.append(to_python(one));
    }
    return points;
  });
  module.def("sweep_models",
             [](const std::vector<rl::Hardware>& machines, const std::vector<rl::ModelShape>& models,
                const std::vector<std::string>& strategies, const std::vector<std::int64_t>& batches,
                const std::vector<std::int64_t>& contexts, bool prefill, bool count_activations) {
               py::list points;
               for (const rl::ModelPoint& point : rl::sweep_models(
                        {machines, models, strategies, batches, contexts, prefill, {count_activations}}))
                 points.append(to_python(rl::to_json(point)));
               return points;
             });
}

void bind_formats(py::module_& module) {
  module.def("precisions", [] {
    json list = json::array();
    for (const rl::Precision precision : rl::kAllPrecisions)
      list.push_back(rl::to_json(rl::precision_info(precision)));
    return list;
  });
  module.def("strategies", [] { return rl::list_json(rl::mixed_precisions()); });
  module.def("op_names", &rl::op_names);
  module.def("attention_names", &rl::attention_names);
  module.def("round_trip",
             [](const Floats& values, std::int64_t rows, std::int64_t columns, const std::string& precision) {
               const std::vector<float> decoded =
                   rl::decode(rl::encode(values_of(values), rows, columns, rl::parse_precision(precision)));
               return Floats(static_cast<py::ssize_t>(decoded.size()), decoded.data());
             });
  module.def("measure_quality", [](const Floats& values, std::int64_t rows, std::int64_t columns,
                                   const std::string& precision) {
    return rl::to_json(rl::measure_quality(values_of(values), rows, columns, rl::parse_precision(precision)));
  });
  const rl::DynamicOptions defaults;
  py::class_<rl::DynamicQuantizer>(module, "DynamicQuantizer")
      .def(py::init([](const std::vector<std::string>& ladder, double outlier_sigmas, double raise_share,
                       std::int64_t calm_steps, std::int64_t absmax_window) {
             std::vector<rl::Precision> formats;
             for (const std::string& name : ladder) formats.push_back(rl::parse_precision(name));
             return rl::DynamicQuantizer({formats, outlier_sigmas, raise_share, calm_steps, absmax_window});
           }),
           py::arg("ladder") = std::vector<std::string>{"nvfp4", "fp8", "fp16"}, py::kw_only(),
           py::arg("outlier_sigmas") = defaults.outlier_sigmas, py::arg("raise_share") = defaults.raise_share,
           py::arg("calm_steps") = defaults.calm_steps, py::arg("absmax_window") = defaults.absmax_window)
      .def("observe",
           [](rl::DynamicQuantizer& self, const std::string& tensor, const Floats& values) {
             return rl::to_json(self.observe(tensor, values_of(values)));
           })
      .def("precision_of",
           [](const rl::DynamicQuantizer& self, const std::string& tensor) {
             return std::string(rl::precision_name(self.precision_of(tensor)));
           })
      .def("log", [](const rl::DynamicQuantizer& self) { return rl::list_json(self.log()); });
}

void bind_calibration(py::module_& module) {
  using rl::Calibration;
  py::class_<Calibration>(module, "Calibration")
      .def(py::init(&rl::read_calibration), py::arg("json_text"), py::arg("origin"))
      .def("json", &rl::calibration_json)
      .def("hardware", &rl::calibrated_hardware, py::arg("name"))
      .def("roofs",
           [](const Calibration& self, const std::string& precision) {
             return rl::to_json(rl::roofs(self, rl::parse_precision(precision)));
           })
      .def("predict_pass",
           [](const Calibration& self, const rl::ModelShape& model, std::int64_t batch, std::int64_t past,
              std::int64_t tokens, const std::string& dtype, const std::string& kv) {
             return rl::to_json(
                 rl::Predictor(self).pass(model, {.batch = batch, .past = past, .tokens = tokens},
                                          rl::parse_precision(dtype), {rl::parse_precision(kv), 0}));
           })
      .def("predict_generation", [](const Calibration& self, const rl::ModelShape& model, bool cached,
                                    std::int64_t batch, std::int64_t prompt_length, std::int64_t new_tokens,
                                    const std::string& dtype, const std::string& kv) {
        return rl::to_json(rl::Predictor(self).generation(model, cached, batch, prompt_length, new_tokens,
                                                          rl::parse_precision(dtype),
                                                          {rl::parse_precision(kv), 0}));
      });
  // The only call that can take long: a server answers others beside it.
  module.def(
      "validate",
      [](const std::string& jsonl, const std::string& origin, const Calibration* calibration) {
        return rl::to_json(rl::validate(jsonl, origin, calibration));
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void bind_roofline(py::module_& module) {
  py::module_ roofline = module.def_submodule("roofline");
  bind_hardware(roofline);
  bind_models(roofline);
  bind_predictions(roofline);
  bind_sweeps(roofline);
  bind_formats(roofline);
  bind_calibration(roofline);
}

}  // namespace kvfuse
