// One run of bench_runner: what every suite works with. It loads the model, knows which points are still to
// be measured, and turns each outcome into a durable record.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "benchmark/cli.h"
#include "benchmark/config.h"
#include "benchmark/limits.h"
#include "benchmark/prepared_models.h"
#include "benchmark/progress.h"
#include "csrc/model/decode_graph.h"
#include "csrc/model/gpt2.h"
#include "csrc/records/run_facts.h"
#include "csrc/text/bpe.h"
#include "csrc/text/token_file.h"

namespace kvfuse::bench {

at::ScalarType scalar_type(DType dtype);

// What became of one measurement.
struct Outcome {
  Status status = Status::kOk;
  std::string reason;
};

// The tokens on which versions fit layers to each other.
struct Calibration {
  at::Tensor tokens;                  // int64 [calibration_tokens], on the model's device
  std::optional<std::string> sha256;  // of their file; none: drawn uniformly from the seed
};

// What a run reads before it touches the results file.
struct Inputs {
  PreparedModels models;
  at::Tensor prompt;                       // int64 [batch_size, prompt_length], seeded, on the model's device
  std::optional<TokenFile> tokens;         // if `benchmarks` score text
  std::optional<Gpt2Tokenizer> tokenizer;  // if dataset and calibration are text
  std::optional<Calibration> calibration;  // if a version of the run needs it
};

// Throws ModelFileError or DataFileError, ConfigError if a version does not run on `device`, or ResourceError
// if the weights do not fit memory_budget or device.
Inputs load_inputs(const BenchConfig& config, c10::Device device, const std::vector<std::string>& benchmarks);

class Session {
 public:
  Session(const BenchConfig& config, const CliOptions& options, const Inputs& inputs, RecordLog& log);

  const BenchConfig& config() const { return config_; }
  const CliOptions& options() const { return options_; }
  const Inputs& inputs() const { return inputs_; }
  // The model as `strategy` runs it. Throws what fitting its layers threw.
  const Gpt2& model(const Strategy& strategy) const { return inputs_.models.model(strategy); }
  c10::Device device() const { return inputs_.prompt.device(); }
  RecordLog& log() { return log_; }

  // What the run's cases and records are made of.
  RunFacts facts() const;
  // Everything that identifies a point: equal cases of two runs are the same measurement.
  json make_case(const std::string& benchmark, const std::string& version,
                 std::optional<std::int64_t> T) const;
  // Whether --resume finds it measured.
  bool done(const json& case_key) const { return options_.resume && log_.done(case_key); }

  // Runs `measure` and says how it ended: ok, oom, failed, or interrupted (by a signal noted meanwhile).
  Outcome attempt(const std::function<void()>& measure) const;

  // Adds the metadata, writes the record, announces it and remembers a failure for the exit code.
  void record(const std::string& benchmark, const json& case_key, const Outcome& outcome,
              const json& measured, const std::string& announcement);

  // Cache and captured step for generating with `strategy` on a CUDA device; null if it keeps no cache, the
  // run is not on CUDA, or cuda_graph is off. Captured once, for the longest T; owned by the session.
  struct Captured {
    KvCache cache;
    DecodeGraph graph;
  };
  Captured* captured(const Strategy& strategy);

  // An empty cache for `capacity` tokens, of which a model sees at most block_size, or none if the version
  // keeps none.
  std::optional<KvCache> make_cache(const Strategy& strategy, std::int64_t batch,
                                    std::int64_t capacity) const;

  SamplerOptions sampler_options() const;

  // What happens beyond block_size when T tokens are generated: nothing if they stay within.
  OverflowPolicy overflow(std::int64_t T) const;

  roofline::TransformerShape shape(const Strategy& strategy) const;

  // A line on stderr, unless --quiet.
  void say(const std::string& text);
  void progress(double done, double total, const std::string& label);
  void finish_progress();

  bool any_point_failed() const { return any_point_failed_; }

 private:
  json metadata(const std::string& version) const;

  const BenchConfig& config_;
  const CliOptions& options_;
  const Inputs& inputs_;
  RecordLog& log_;
  std::map<std::string, std::unique_ptr<Captured>, std::less<>> captured_;
  std::optional<Progress> progress_;
  bool any_point_failed_ = false;
};

}  // namespace kvfuse::bench
