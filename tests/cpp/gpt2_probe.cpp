// Runs the model for the Python tests: gpt2_probe MODE VERSION WEIGHTS N_LAYER N_HEAD N_EMBD BLOCK_SIZE
// VOCAB_SIZE NEW_TOKENS [TEMPERATURE TOP_K TOP_P SEED] reads int64 token ids [batch, T] after two int64 sizes
// from stdin. MODE `logits` writes the float32 logits of every token to stdout, `generate` the int64 tokens
// of a generation, greedy unless a temperature is given.
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string>

#include "csrc/model/generate.h"
#include "csrc/model/layer_sharing.h"
#include "csrc/versions/registry.h"

namespace {

void read_all(void* data, std::size_t bytes) {
  if (std::fread(data, 1, bytes, stdin) != bytes) throw std::runtime_error("stdin ended early");
}

void write_all(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.contiguous();
  std::fwrite(whole.const_data_ptr(), 1, whole.nbytes(), stdout);
}

int run(int argc, char** argv) {
  const c10::InferenceMode inference;
  const auto number = [&](int i) { return std::strtoll(argv[i], nullptr, 10); };
  const kvfuse::ModelConfig config{.n_layer = number(4),
                                   .n_head = number(5),
                                   .n_embd = number(6),
                                   .block_size = number(7),
                                   .vocab_size = number(8)};
  const kvfuse::Strategy& strategy = kvfuse::find_version(argv[2]);
  const kvfuse::Gpt2 model(
      kvfuse::with_shared_layers(kvfuse::load_weights(argv[3], config, at::kFloat), strategy));
  std::int64_t sizes[2];
  read_all(sizes, sizeof sizes);
  at::Tensor tokens = at::empty({sizes[0], sizes[1]}, at::TensorOptions().dtype(at::kLong));
  read_all(tokens.mutable_data_ptr(), tokens.nbytes());

  std::optional<kvfuse::KvCache> cache;
  if (strategy.use_cache) cache.emplace(config, strategy, sizes[0], config.block_size, at::kFloat);
  kvfuse::KvCache* held = cache ? &*cache : nullptr;
  if (std::string(argv[1]) == "logits") {
    write_all(model.forward(tokens, held, kvfuse::LogitsOf::kEveryToken));
  } else {
    kvfuse::SamplerOptions options;
    if (argc > 10)
      options = {.temperature = std::strtod(argv[10], nullptr),
                 .top_k = number(11),
                 .top_p = std::strtod(argv[12], nullptr),
                 .seed = static_cast<std::uint64_t>(number(13))};
    kvfuse::Sampler sampler(options);
    write_all(kvfuse::generate(model, held, tokens, number(9), sampler).tokens);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 10 && argc != 14) throw std::runtime_error("expected 9 or 13 arguments");
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpt2_probe: error: %s\n", error.what());
    return 1;
  }
}
