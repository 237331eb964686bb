#include "csrc/records/run_facts.h"

#include <ATen/Parallel.h>

#include "csrc/ops/build_info.h"
#include "csrc/records/machine.h"

namespace kvfuse {
namespace {

bool is_int8(const Strategy& strategy) { return strategy.kv_cache_dtype == KvCacheDtype::kInt8; }

template <typename T>
json or_null(const std::optional<T>& value) {
  return value ? json(*value) : json(nullptr);
}

// What the weights of `strategy` depend on besides the file of weights; nothing unless it fits layers.
json calibration_fields(const RunFacts& run, const Strategy& strategy) {
  if (strategy.q_alignment != QAlignment::kFit) return json::object();
  const CalibrationFacts& calibration = run.calibration.value();
  return {{"calibration_sha256", or_null(calibration.sha256)}, {"calibration_tokens", calibration.tokens}};
}

}  // namespace

json case_fields(const RunFacts& run, std::string_view benchmark, const Strategy& strategy) {
  const bool on_gpu = run.device.is_cuda();
  json fields = {{"benchmark_name", benchmark},
                 {"version", strategy.name},
                 {"model", run.model_name},
                 {"model_config", model_config_json(run.model, strategy)},
                 {"dtype", run.dtype},
                 {"weights", or_null(run.weights)},
                 {"transforms", names_of(run.transforms)},
                 {"device", c10::DeviceTypeName(run.device.type(), /*lower_case=*/true)},
                 {"cuda_graph", on_gpu && run.cuda_graph},
                 {"overlap_kernels", on_gpu && run.overlap_kernels},
                 {"batch_size", run.batch_size},
                 {"seed", run.seed},
                 {"num_threads", at::get_num_threads()},
                 {"isa", ops::build_info().active_isa},
                 {"memory_budget", or_null(run.memory_budget)}};
  fields.update(calibration_fields(run, strategy));
  return fields;
}

json metadata_fields(const RunFacts& run, const Strategy& strategy, std::span<const LayerFit> fits) {
  const json context = machine_context(run.device);
  json fields = strategy_json(strategy);
  fields.update({{"implementation_name", "kvfuse"},
                 {"gpu_name", context["gpu_name"]},
                 {"gpu_total_vram", context["gpu_total_vram"]},
                 {"python_version", or_null(run.python_version)},
                 {"pytorch_version", context["torch"]},
                 {"cuda_version", context["cuda_version"]},
                 {"dtype", run.dtype},
                 {"model_config", model_config_json(run.model, strategy)},
                 {"pretrained", run.model_name == "custom" ? json(nullptr) : json(run.model_name)},
                 {"weights", run.weights ? json(*run.weights) : json("random")},
                 {"prompt_length", or_null(run.prompt_length)},
                 {"batch_size", run.batch_size},
                 {"seed", run.seed},
                 {"context", context}});
  if (strategy.q_alignment != QAlignment::kFit) return fields;
  fields.update(calibration_fields(run, strategy));
  fields["calibration"] = or_null(run.calibration->path);
  fields["layer_fits"] = json::array();
  for (const LayerFit& fit : fits)
    fields["layer_fits"].push_back(
        {{"layer", fit.layer}, {"owner", fit.owner}, {"k_error", fit.k_error}, {"v_error", fit.v_error}});
  return fields;
}

json model_config_json(const ModelConfig& config, const Strategy& strategy) {
  return {{"n_layer", config.n_layer},
          {"n_head", config.n_head},
          {"n_embd", config.n_embd},
          {"block_size", config.block_size},
          {"vocab_size", config.vocab_size},
          {"dropout", config.dropout},
          {"bias", config.bias},
          {"kv_cache_quant", is_int8(strategy)},
          {"cross_layer_sharing", strategy.sharing_group > 1}};
}

json strategy_json(const Strategy& strategy) {
  return {{"version", std::string(strategy.name)},
          {"version_description", std::string(strategy.description)},
          {"use_cache", strategy.use_cache},
          {"kv_cache_quant", is_int8(strategy)},
          {"cross_layer_sharing", strategy.sharing_group > 1},
          {"q_alignment", strategy.q_alignment != QAlignment::kNone},
          {"q_alignment_method", q_alignment_name(strategy.q_alignment)},
          {"kv_cache_dtype", is_int8(strategy) ? "int8" : "model"},
          {"sharing_group", strategy.sharing_group},
          {"weight_dtype", weight_dtype_name(strategy.weight_dtype)}};
}

json overflow_json(const OverflowPolicy& policy) {
  json fields = {{"kind", overflow_name(policy.kind)}};
  if (policy.kind != Overflow::kError) fields["keep"] = policy.keep;
  if (policy.kind == Overflow::kSink) fields["sink_tokens"] = policy.sink;
  return fields;
}

}  // namespace kvfuse
