// Prefill and decode of a whole model on the roofline: what each operator takes, and what bounds it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/roofline/gemm.h"
#include "csrc/roofline/hardware.h"
#include "csrc/roofline/operators.h"

namespace kvfuse::roofline {

struct PassOptions {
  // Whether what one operator hands to the next goes through memory. Without it, weights, K and V are all
  // that is moved: the shortest time that any fusing could reach.
  bool count_activations = true;
};

struct OperatorPrediction {
  Op op = Op::kEmbedding;
  Precision precision = Precision::kFp16;
  Precision computed_in = Precision::kFp16;
  bool storage_only = false;  // see Peak
  double flops = 0;
  double bytes = 0;
  double ai = 0;           // FLOPs a byte; 0 where nothing is moved
  double critical_ai = 0;  // from there on the arithmetic is the slower one
  double memory_ms = 0;
  double compute_ms = 0;
  double time_ms = 0;  // the larger of the two
  Bound bound = Bound::kMemory;
};

struct PassPrediction {
  Pass pass;
  std::array<OperatorPrediction, kOps> operators;
  double flops = 0;
  double weight_bytes = 0;
  double cache_bytes = 0;
  double activation_bytes = 0;  // 0 if they were not to be counted
  double bytes = 0;             // all three
  double ai = 0;
  double memory_ms = 0;   // all bytes at full bandwidth
  double compute_ms = 0;  // all operations at their peaks
  double time_ms = 0;  // operators one after the other, each at its slower limit; never below the two above
  double shortest_ms = 0;  // the larger of memory_ms and compute_ms: operators overlap perfectly
  Bound bound = Bound::kMemory;
};

// Throws std::invalid_argument on a model or pass that cannot be.
PassPrediction predict_pass(const Hardware& hardware, const ModelShape& model, const Pass& pass,
                            const OperatorPrecisions& precisions, const PassOptions& options = {});

// As predict_pass of a model and pass that were checked already.
PassPrediction predict_checked_pass(const Hardware& hardware, const ModelShape& model, const Pass& pass,
                                    const OperatorPrecisions& precisions, const PassOptions& options);

// How many operators of a pass do less than `intensity` FLOPs a byte, of those that move any.
struct IntensityCount {
  int below = 0;
  int all = 0;
};
IntensityCount count_below(const PassPrediction& prediction, double intensity);

// Generating `new_tokens` (at most 2^17) after a prompt with a cache: a pass over the prompt, which gives the
// first of them, then one token each.
struct GenerationPrediction {
  double prefill_ms = 0;
  double first_decode_ms = 0;
  double last_decode_ms = 0;
  double decode_ms = 0;  // of all steps
  double total_ms = 0;
  double tokens_per_s = 0;    // new tokens of all sequences over the total
  double kv_cache_bytes = 0;  // at the end
  double weight_bytes = 0;    // resident, embeddings included
  double resident_bytes = 0;  // both
  bool fits_memory = true;    // of the hardware, where its size is known
};
GenerationPrediction predict_generation(const Hardware& hardware, const ModelShape& model, std::int64_t batch,
                                        std::int64_t prompt_length, std::int64_t new_tokens,
                                        const OperatorPrecisions& precisions,
                                        const PassOptions& options = {});

// Bytes that the weights take in memory: linear layers each in its operator's format.
double resident_weight_bytes(const ModelShape& model, const OperatorPrecisions& precisions);

}  // namespace kvfuse::roofline
