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
#include "benchmark/shape.h"
#include "benchmark/stages.h"
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

// Drawn uniformly from the vocabulary.
at::Tensor random_tokens(const BenchConfig& config, at::IntArrayRef shape) {
  at::Tensor tokens = at::empty(shape, at::TensorOptions().dtype(at::kLong));
  std::mt19937_64 random(static_cast<std::uint64_t>(config.seed));
  auto* ids = tokens.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < tokens.numel(); ++i)
    ids[i] = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(config.model.vocab_size));
  return tokens;
}

TokenFile read_tokens(const std::string& path, const std::optional<Gpt2Tokenizer>& tokenizer,
                      const BenchConfig& config) {
  return tokenizer ? read_text_file(path, *tokenizer, config.model.vocab_size)
                   : read_token_file(path, config.model.vocab_size);
}

bool needs_calibration(const BenchConfig& config) {
  const auto fits = [](const Strategy& strategy) { return strategy.q_alignment == QAlignment::kFit; };
  return std::any_of(config.versions.begin(), config.versions.end(),
                     [&](const std::string& version) { return fits(find_version(version)); }) ||
         std::any_of(config.profile_stages.begin(), config.profile_stages.end(),
                     [&](const std::string& name) { return fits(*find_stage(name).strategy); });
}

// On the CPU.
Calibration load_calibration(const BenchConfig& config, const std::optional<Gpt2Tokenizer>& tokenizer) {
  const std::int64_t count = config.calibration_tokens;
  if (!config.calibration) return {random_tokens(config, {count}), std::nullopt};
  const TokenFile file = read_tokens(*config.calibration, tokenizer, config);
  if (static_cast<std::int64_t>(file.tokens.size()) < count)
    throw DataFileError(*config.calibration + ": expected at least calibration_tokens (" +
                        std::to_string(count) + ") tokens, got " + std::to_string(file.tokens.size()) +
                        " (hint: lower calibration_tokens)");
  at::Tensor tokens = at::empty({count}, at::TensorOptions().dtype(at::kLong));
  std::copy_n(file.tokens.begin(), count, tokens.mutable_data_ptr<std::int64_t>());
  return {tokens, file.sha256};
}

// PyTorch's CPU allocator reports a failed allocation as a plain c10::Error.
bool says_out_of_memory(const c10::Error& error) {
  const std::string_view text = error.what_without_backtrace();
  return text.find("can't allocate memory") != std::string_view::npos ||
         text.find("Storage size calculation overflowed") != std::string_view::npos;
}

}  // namespace

json overflow_json(const OverflowPolicy& policy) {
  json fields = {{"kind", overflow_name(policy.kind)}};
  if (policy.kind != Overflow::kError) fields["keep"] = policy.keep;
  if (policy.kind == Overflow::kSink) fields["sink_tokens"] = policy.sink;
  return fields;
}

at::ScalarType scalar_type(DType dtype) {
  if (dtype == DType::kBFloat16) return at::kBFloat16;
  if (dtype == DType::kFloat16) return at::kHalf;
  return at::kFloat;
}

Inputs load_inputs(const BenchConfig& config, c10::Device device, bool with_tokens) {
  std::optional<TokenFile> tokens;
  std::optional<Gpt2Tokenizer> tokenizer;
  std::optional<Calibration> calibration;
  const bool calibrates = needs_calibration(config);
  if (config.vocabulary && (with_tokens || (calibrates && config.calibration)))
    tokenizer = Gpt2Tokenizer::from_folder(*config.vocabulary);
  if (with_tokens) tokens = read_tokens(*config.dataset, tokenizer, config);
  if (calibrates) calibration = load_calibration(config, tokenizer);
  std::string problem;
  try {
    if (calibration) calibration->tokens = calibration->tokens.to(device);
    return {Gpt2(make_weights(config).to(device)),
            random_tokens(config, {config.batch_size, config.prompt_length}).to(device), std::move(tokens),
            std::move(tokenizer), std::move(calibration)};
  } catch (const c10::OutOfMemoryError& error) {
    problem = error.what_without_backtrace();
  }
  throw ResourceError("the weights of " + config.model_name + " do not fit: " + problem +
                      " (raise memory_budget or choose a smaller model)");
}

Session::Session(const BenchConfig& config, const CliOptions& options, const Inputs& inputs, RecordLog& log)
    : config_(config), options_(options), inputs_(inputs), log_(log) {
  for (const std::string& warning : model().weights().warnings) say("warning: " + warning);
  if (inputs.calibration && !inputs.calibration->sha256)
    say("warning: the layers of versions that fit them are fitted on random tokens, which say little about "
        "text (the key calibration names a file)");
}

const Gpt2& Session::model(const Strategy& strategy) {
  const std::pair key(strategy.sharing_group, strategy.q_alignment);
  const auto found = models_.find(key);
  if (found != models_.end()) return found->second.model;
  const Gpt2Weights& own = inputs_.model.weights();
  FittedLayers shared = strategy.q_alignment == QAlignment::kFit
                            ? fit_shared_layers(own, strategy, inputs_.calibration->tokens)
                            : FittedLayers{with_shared_layers(own, strategy), {}};
  Prepared prepared{Gpt2(fold_transforms(std::move(shared.weights), config_.transforms)),
                    std::move(shared.fits)};
  return models_.emplace(key, std::move(prepared)).first->second.model;
}

// What the weights of `strategy` depend on besides the file of weights; nothing unless it fits layers.
json Session::calibration_fields(const Strategy& strategy) const {
  if (strategy.q_alignment != QAlignment::kFit) return json::object();
  const Calibration& calibration = *inputs_.calibration;
  return {{"calibration_sha256", calibration.sha256 ? json(*calibration.sha256) : json(nullptr)},
          {"calibration_tokens", calibration.tokens.numel()}};
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
  key.update(calibration_fields(find_version(version)));
  if (!T) return key;
  key.update({{"prompt_length", config_.prompt_length},
              {"T", *T},
              {"num_warmup_runs", config_.num_warmup_runs},
              {"num_measure_runs", config_.num_measure_runs},
              {"temperature", config_.temperature},
              {"top_k", config_.top_k},
              {"top_p", config_.top_p}});
  if (const OverflowPolicy policy = overflow(*T); policy.kind != Overflow::kError)
    key["overflow"] = overflow_json(policy);
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
  if (strategy.q_alignment != QAlignment::kFit) return fields;
  fields.update(calibration_fields(strategy));
  fields["calibration"] = config_.calibration ? json(*config_.calibration) : json(nullptr);
  fields["layer_fits"] = json::array();
  const auto prepared = models_.find({strategy.sharing_group, strategy.q_alignment});
  if (prepared == models_.end()) return fields;  // the fit itself failed
  for (const LayerFit& fit : prepared->second.fits)
    fields["layer_fits"].push_back(
        {{"layer", fit.layer}, {"owner", fit.owner}, {"k_error", fit.k_error}, {"v_error", fit.v_error}});
  return fields;
}

void Session::record(const std::string& benchmark, const json& case_key, const Outcome& outcome,
                     const json& measured, const std::string& announcement) {
  json line = make_record(benchmark, case_key, outcome.status, outcome.reason);
  line.update(metadata(case_key["version"].get<std::string>()));
  line.update(measured);
  log_.append(line);
  if (outcome.status == Status::kOom || outcome.status == Status::kFailed) any_point_failed_ = true;
  const json& name = case_key.contains("stage") ? case_key["stage"] : case_key["version"];
  say("recorded " + benchmark + " " + name.get<std::string>() +
      (case_key.contains("T") ? " T=" + std::to_string(case_key["T"].get<std::int64_t>()) : "") + ": " +
      (outcome.status == Status::kOk
           ? announcement
           : std::string(status_name(outcome.status)) + " (" + outcome.reason + ")"));
}

SamplerOptions Session::sampler_options() const {
  return {.temperature = config_.temperature,
          .top_k = config_.top_k,
          .top_p = config_.top_p,
          .seed = static_cast<std::uint64_t>(config_.seed)};
}

OverflowPolicy Session::overflow(std::int64_t T) const {
  if (config_.prompt_length + T <= config_.model.block_size) return {};
  return config_.overflow_policy();
}

Session::Captured* Session::captured(const Strategy& strategy) {
  if (!strategy.use_cache || !device().is_cuda() || !config_.cuda_graph) return nullptr;
  std::unique_ptr<Captured>& entry = captured_[std::string(strategy.name)];
  if (!entry) {
    const std::int64_t longest = *std::max_element(config_.T_values.begin(), config_.T_values.end());
    KvCache cache = *make_cache(strategy, config_.batch_size, config_.prompt_length + longest - 1);
    DecodeGraph graph(model(strategy), cache, longest, sampler_options(), config_.overlap_kernels,
                      ops::cuda_services());
    entry = std::make_unique<Captured>(Captured{std::move(cache), std::move(graph)});
  }
  return entry.get();
}

std::optional<KvCache> Session::make_cache(const Strategy& strategy, std::int64_t batch,
                                           std::int64_t capacity) const {
  if (!strategy.use_cache) return std::nullopt;
  capacity = std::min(capacity, config_.model.block_size);
  return KvCache(config_.model, strategy, batch, capacity, inputs_.prompt.options().dtype(model().dtype()));
}

roofline::TransformerShape Session::shape(const Strategy& strategy) const {
  return transformer_shape(config_, strategy);
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
