#include "benchmark/session.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdio>
#include <new>
#include <span>
#include <stdexcept>

#include "benchmark/errors.h"
#include "benchmark/interrupt.h"
#include "benchmark/memory.h"
#include "benchmark/shape.h"
#include "csrc/model/model_file.h"
#include "csrc/model/out_of_memory.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

Gpt2Weights make_weights(const BenchConfig& config) {
  const at::ScalarType dtype = scalar_type(config.dtype);
  if (!config.weights) return random_weights(config.model, dtype, static_cast<std::uint64_t>(config.seed));
  return load_weights(*config.weights, config.model, dtype, {.strict = config.strict_weights});
}

at::Tensor random_tokens(const BenchConfig& config, at::IntArrayRef shape) {
  return random_token_ids(shape, config.model.vocab_size, static_cast<std::uint64_t>(config.seed));
}

TokenFile read_tokens(const std::string& path, const std::optional<Gpt2Tokenizer>& tokenizer,
                      const BenchConfig& config) {
  return tokenizer ? read_text_file(path, *tokenizer, config.model.vocab_size)
                   : read_token_file(path, config.model.vocab_size);
}

bool needs_calibration(const std::vector<const Strategy*>& strategies) {
  return std::any_of(strategies.begin(), strategies.end(),
                     [](const Strategy* strategy) { return strategy->q_alignment == QAlignment::kFit; });
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

// A device is known only when a run begins, not when its configuration is read.
void check_device(const std::vector<const Strategy*>& strategies, c10::Device device) {
  std::vector<std::string> problems;
  for (const Strategy* strategy : strategies)
    if (strategy->weight_dtype != WeightDtype::kModel && !device.is_cpu())
      problems.push_back("version " + std::string(strategy->name) + ": expected the CPU, where " +
                         weight_dtype_name(strategy->weight_dtype) + " weights are run, got device " +
                         device.str() + " (hint: --device cpu)");
  if (!problems.empty()) throw ConfigError(problems);
}

}  // namespace

at::ScalarType scalar_type(DType dtype) {
  if (dtype == DType::kBFloat16) return at::kBFloat16;
  if (dtype == DType::kFloat16) return at::kHalf;
  return at::kFloat;
}

Inputs load_inputs(const BenchConfig& config, c10::Device device,
                   const std::vector<std::string>& benchmarks) {
  const std::vector<const Strategy*> strategies = measured_strategies(config, benchmarks);
  check_device(strategies, device);
  const bool with_tokens = std::find(benchmarks.begin(), benchmarks.end(), "perplexity") != benchmarks.end();
  std::optional<TokenFile> tokens;
  std::optional<Gpt2Tokenizer> tokenizer;
  std::optional<Calibration> calibration;
  const bool calibrates = needs_calibration(strategies);
  if (config.vocabulary && (with_tokens || (calibrates && config.calibration)))
    tokenizer = Gpt2Tokenizer::from_folder(*config.vocabulary);
  if (with_tokens) tokens = read_tokens(*config.dataset, tokenizer, config);
  if (calibrates) calibration = load_calibration(config, tokenizer);
  std::string problem;
  try {
    if (calibration) calibration->tokens = calibration->tokens.to(device);
    return {PreparedModels(make_weights(config).to(device), strategies, config.transforms,
                           calibration ? calibration->tokens : at::Tensor()),
            random_tokens(config, {config.batch_size, config.prompt_length}).to(device), std::move(tokens),
            std::move(tokenizer), std::move(calibration)};
  } catch (const c10::OutOfMemoryError& error) {
    problem = error.what_without_backtrace();
  } catch (const std::invalid_argument& error) {
    if (!config.weights) throw;
    throw ModelFileError(*config.weights, error.what());
  }
  throw ResourceError("the weights of " + config.model_name + " do not fit: " + problem +
                      " (raise memory_budget or choose a smaller model)");
}

Session::Session(const BenchConfig& config, const CliOptions& options, const Inputs& inputs, RecordLog& log)
    : config_(config), options_(options), inputs_(inputs), log_(log) {
  for (const std::string& warning : inputs.models.warnings()) say("warning: " + warning);
  if (inputs.calibration && !inputs.calibration->sha256)
    say("warning: the layers of versions that fit them are fitted on random tokens, which say little about "
        "text (the key calibration names a file)");
}

RunFacts Session::facts() const {
  RunFacts facts{.model_name = config_.model_name,
                 .model = config_.model,
                 .dtype = dtype_name(config_.dtype),
                 .weights = config_.weights,
                 .transforms = config_.transforms,
                 .device = device(),
                 .cuda_graph = config_.cuda_graph,
                 .overlap_kernels = config_.overlap_kernels,
                 .prompt_length = config_.prompt_length,
                 .batch_size = config_.batch_size,
                 .seed = config_.seed,
                 .memory_budget = config_.memory_budget,
                 .calibration = {},
                 .python_version = {}};
  if (inputs_.calibration)
    facts.calibration = {.path = config_.calibration,
                         .sha256 = inputs_.calibration->sha256,
                         .tokens = inputs_.calibration->tokens.numel()};
  return facts;
}

json Session::make_case(const std::string& benchmark, const std::string& version,
                        std::optional<std::int64_t> T) const {
  json key = case_fields(facts(), benchmark, find_version(version));
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
  return metadata_fields(facts(), strategy, inputs_.models.fits(strategy));
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
  return KvCache(config_.model, strategy, batch, capacity,
                 inputs_.prompt.options().dtype(scalar_type(config_.dtype)));
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
  if (progress_) progress_->finish(interrupted_signal() != 0);
  progress_.reset();
}

}  // namespace kvfuse::bench
