// A GPT-2 decode step as calls of the CPU kernels.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "kernels/cpu/team.h"
#include "kernels/decode_step_sequence.h"
#include "kernels/half.h"

namespace kvfuse::cpu {
namespace {

// Token: what the table of tokens holds; T: the table of positions.
template <typename Token, typename T>
void embed_rows(const EmbeddingParams& p) {
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const std::int64_t token = p.tokens[b];
    const std::int64_t position = p.cache_seqlens[b];
    const bool known = token >= 0 && token < p.vocab_size && position >= 0 && position < p.positions;
    const WeightRow row = weight_row(p.token_format, p.vocab_size, p.width, known ? token : 0);
    const Token* tokens = static_cast<const Token*>(p.token_embedding);
    const auto value = [&](std::int64_t i) {
      if constexpr (std::is_same_v<Token, std::int8_t>)
        return static_cast<float>(static_cast<std::int8_t>(tokens[row.at(i)] ^ row.zero));
      else
        return to_float(tokens[row.at(i)]);
    };
    const T* position_row = static_cast<const T*>(p.position_embedding) + (known ? position : 0) * p.width;
    const float scale = has_codes(p.token_format) ? p.token_embedding_scale[known ? token : 0] : 1.0F;
    for (std::int64_t i = 0; i < p.width; ++i)
      p.x[b * p.width + i] =
          known ? value(i) * scale + to_float(position_row[i]) : std::numeric_limits<float>::quiet_NaN();
    p.visible_seqlens[b] = static_cast<std::int32_t>(position + 1);
  }
}

template <typename T>
void embed_rows(const EmbeddingParams& p) {
  if (has_codes(p.token_format))
    embed_rows<std::int8_t, T>(p);
  else
    embed_rows<T, T>(p);
}

struct Backend {
  using Status = bool;

  const OnPhase& on_phase;

  void begins(Phase phase) const {
    if (on_phase) on_phase(phase);
  }
  static bool done(bool status) { return status; }
  static bool embed(const EmbeddingParams& p) {
    if (p.dtype == DType::kFloat32)
      embed_rows<float>(p);
    else if (p.dtype == DType::kBFloat16)
      embed_rows<BFloat16>(p);
    else
      embed_rows<Float16>(p);
    return true;
  }
  static bool linear(const LinearParams& p) {
    cpu::linear(p);
    return true;
  }
  static bool attend(const AttentionParams& p) {
    decode_attention(p);
    return true;
  }
};

constexpr std::int64_t kNoWorkspace = 0;  // decode_attention has its own

}  // namespace

std::int64_t decode_step_workspace_bytes(const DecodeStepParams& p) {
  return step_has_sizes(p) ? StepBuffers(p, nullptr, kNoWorkspace).bytes : 0;
}

void decode_step(const DecodeStepParams& p, const OnPhase& on_phase) {
  if (!step_has_sizes(p) || !step_is_valid(p))
    throw std::invalid_argument(
        "decode_step: expected caches of the model's batch, heads and width, one for each "
        "layer, a workspace and logits");
  const StepBuffers buffers(p, p.workspace, kNoWorkspace);
  const StepSequence sequence(p, buffers, Backend{on_phase});
  Team::gather([&] { sequence.run(); });
}

}  // namespace kvfuse::cpu
