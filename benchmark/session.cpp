#include "benchmark/session.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdio>
#include <new>
#include <random>

#include "benchmark/interrupt.h"
#include "benchmark/machine.h"
#include "benchmark/memory.h"
#include "csrc/model/layer_sharing.h"
#include "csrc/model/transforms.h"
#include "csrc/ops/build_info.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

Gpt2Weights make_weights(const BenchConfig& config) {
  const at::ScalarType dtype = scalar_type(config.dtype);
  if (!config.weights) return random_weights(config.model, dtype, static_cast<std::uint64_t>(config.seed));
  return load_weights(*config.weights, config.model, dtype, {.strict = config.strict_weights});
}

at::Tensor make_prompt(const BenchConfig& config) {
  at::Tensor prompt =
      at::empty({config.batch_size, config.prompt_length}, at::TensorOptions().dtype(at::kLong));
  std::mt19937_64 random(static_cast<std::uint64_t>(config.seed));
  auto* tokens = prompt.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < prompt.numel(); ++i)
    tokens[i] = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(config.model.vocab_size));
  return prompt;
}

// PyTorch's CPU allocator reports a failed allocation as a plain c10::Error.
bool says_out_of_memory(const c10::Error& error) {
  const std::string_view text = error.what_without_backtrace();
  return text.find("can't allocate memory") != std::string_view::npos ||
         text.find("Storage size calculation overflowed") != std::string_view::npos;
}

}  // namespace

at::ScalarType scalar_type(DType dtype) {
  if (dtype == DType::kBFloat16) return at::kBFloat16;
  if (dtype == DType::kFloat16) return at::kHalf;
  return at::kFloat;
}

Inputs load_inputs(const BenchConfig& config, c10::Device device, bool with_tokens) {
  std::optional<TokenFile> tokens;
  std::optional<Gpt2Tokenizer> tokenizer;
  if (with_tokens && config.vocabulary) {
    tokenizer = Gpt2Tokenizer::from_folder(*config.vocabulary);
    tokens = read_text_file(*config.dataset, *tokenizer, config.model.vocab_size);
  } else if (with_tokens) {
    tokens = read_token_file(*config.dataset, config.model.vocab_size);
  }
  std::string problem;
  try {
    return {Gpt2(make_weights(config).to(device)), make_prompt(config).to(device), std::move(tokens),
            std::move(tokenizer)};
  } catch (const c10::OutOfMemoryError& error) {
    problem = error.what_without_backtrace();
  }
  throw ResourceError("the weights of " + config.model_name + " do not fit: " + problem +
                      " (raise memory_budget or choose a smaller model)");
}

Session::Session(const BenchConfig& config, const CliOptions& options, const Inputs& inputs, RecordLog& log)
    : config_(config), options_(options), inputs_(inputs), log_(log) {
  for (const std::string& warning : model().weights().warnings) say("warning: " + warning);
}

const Gpt2& Session::model(const Strategy& strategy) {
  const std::pair key(strategy.sharing_group, strategy.q_alignment);
  const auto found = models_.find(key);
  if (found != models_.end()) return found->second;
  const Gpt2Weights shared = with_shared_layers(inputs_.model.weights(), strategy);
  return models_.emplace(key, Gpt2(fold_transforms(shared, config_.transforms))).first->second;
}

json Session::make_case(const std::string& benchmark, const std::string& version,
                        std::optional<std::int64_t> T) const {
  const bool on_gpu = device().is_cuda();
  json key = {{"benchmark_name", benchmark},
              {"version", version},
              {"model", config_.model_name},
              {"model_config", model_config_json(config_.model, find_version(version))},
              {"dtype", dtype_name(config_.dtype)},
              {"weights", config_.weights ? json(*config_.weights) : json(nullptr)},
              {"transforms", names_of(config_.transforms)},
              {"device", c10::DeviceTypeName(device().type(), /*lower_case=*/true)},
              {"cuda_graph", on_gpu && config_.cuda_graph},
              {"overlap_kernels", on_gpu && config_.overlap_kernels},
              {"batch_size", config_.batch_size},
              {"seed", config_.seed},
              {"num_threads", at::get_num_threads()},
              {"isa", ops::build_info().active_isa},
              {"memory_budget", config_.memory_budget ? json(*config_.memory_budget) : json(nullptr)}};
  if (!T) return key;
  key.update({{"prompt_length", config_.prompt_length},
              {"T", *T},
              {"num_warmup_runs", config_.num_warmup_runs},
              {"num_measure_runs", config_.num_measure_runs},
              {"temperature", config_.temperature},
              {"top_k", config_.top_k},
              {"top_p", config_.top_p}});
  return key;
}

Outcome Session::attempt(const std::function<void()>& measure) const {
  try {
    measure();
  } catch (const c10::OutOfMemoryError& error) {
    return {Status::kOom, error.what_without_backtrace()};
  } catch (const c10::Error& error) {
    return {says_out_of_memory(error) ? Status::kOom : Status::kFailed, error.what_without_backtrace()};
  } catch (const std::bad_alloc&) {
    return {Status::kOom, "the system has no memory left"};
  } catch (const std::invalid_argument& error) {
    return {Status::kFailed, error.what()};
  }
  if (interrupted_signal() != 0)
    return {Status::kInterrupted, "stopped by signal " + std::to_string(interrupted_signal())};
  return {};
}

json Session::metadata(const std::string& version) const {
  const Strategy& strategy = find_version(version);
  const json context = machine_context(device());
  json fields = strategy_json(strategy);
  fields.update({{"implementation_name", "kvfuse"},
                 {"gpu_name", context["gpu_name"]},
                 {"gpu_total_vram", context["gpu_total_vram"]},
                 {"python_version", nullptr},
                 {"pytorch_version", context["torch"]},
                 {"cuda_version", context["cuda_version"]},
                 {"dtype", dtype_name(config_.dtype)},
                 {"model_config", model_config_json(config_.model, strategy)},
                 {"pretrained", config_.model_name == "custom" ? json(nullptr) : json(config_.model_name)},
                 {"weights", config_.weights ? json(*config_.weights) : json("random")},
                 {"prompt_length", config_.prompt_length},
                 {"batch_size", config_.batch_size},
                 {"seed", config_.seed},
                 {"context", context}});
  return fields;
}

void Session::record(const std::string& benchmark, const json& case_key, const Outcome& outcome,
                     const json& measured, const std::string& announcement) {
  json line = make_record(benchmark, case_key, outcome.status, outcome.reason);
  line.update(metadata(case_key["version"].get<std::string>()));
  line.update(measured);
  log_.append(line);
  if (outcome.status == Status::kOom || outcome.status == Status::kFailed) any_point_failed_ = true;
  say("recorded " + benchmark + " " + case_key["version"].get<std::string>() +
      (case_key.contains("T") ? " T=" + std::to_string(case_key["T"].get<std::int64_t>()) : "") + ": " +
      (outcome.status == Status::kOk
           ? announcement
           : std::string(status_name(outcome.status)) + " (" + outcome.reason + ")"));
}

std::int64_t Session::device_memory_bytes() const {
  return device().is_cuda() ? ops::cuda_services().device(device().index()).total_bytes : 0;
}

SamplerOptions Session::sampler_options() const {
  return {.temperature = config_.temperature,
          .top_k = config_.top_k,
          .top_p = config_.top_p,
          .seed = static_cast<std::uint64_t>(config_.seed)};
}

Session::Captured* Session::captured(const Strategy& strategy) {
  if (!strategy.use_cache || !device().is_cuda() || !config_.cuda_graph) return nullptr;
  std::unique_ptr<Captured>& entry = captured_[std::string(strategy.name)];
  if (!entry) {
    const std::int64_t longest = *std::max_element(config_.T_values.begin(), config_.T_values.end());
    KvCache cache = *make_cache(strategy, config_.batch_size, config_.prompt_length + longest - 1);
    DecodeGraph graph(model(strategy), cache, sampler_options(), config_.overlap_kernels,
                      ops::cuda_services());
    entry = std::make_unique<Captured>(Captured{std::move(cache), std::move(graph)});
  }
  return entry.get();
}

std::optional<KvCache> Session::make_cache(const Strategy& strategy, std::int64_t batch,
                                           std::int64_t capacity) const {
  if (!strategy.use_cache) return std::nullopt;
  return KvCache(config_.model, strategy, batch, capacity, inputs_.prompt.options().dtype(model().dtype()));
}

roofline::TransformerShape Session::shape(const Strategy& strategy) const {
  const ModelConfig& model = config_.model;
  const std::int64_t weight_bytes = element_bytes(config_.dtype);
  const std::int64_t borrowing = model.n_layer - owning_layers(model.n_layer, strategy.sharing_group);
  return {.n_layer = model.n_layer,
          .borrowing_layers = borrowing,
          .n_embd = model.n_embd,
          .vocab_size = model.vocab_size,
          .parameters = model.parameter_count(strategy) - model.block_size * model.n_embd,
          .weight_bytes = weight_bytes,
          .kv_bytes_per_token = kv_bytes_per_token(model, strategy, weight_bytes)};
}

void Session::say(const std::string& text) {
  if (options_.quiet) return;
  if (progress_) progress_->clear();
  std::fprintf(stderr, "%s\n", text.c_str());
}

void Session::progress(double done, double total, const std::string& label) {
  if (!progress_) progress_.emplace(total, Progress::style_for(stderr, options_.quiet));
  progress_->update(done, label);
}

void Session::finish_progress() {
  if (progress_) progress_->finish();
  progress_.reset();
}

}  // namespace kvfuse::bench
