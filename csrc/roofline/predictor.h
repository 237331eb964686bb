// Times from a calibration: what this project's runner should take on the machine that was measured.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <utility>

#include "csrc/roofline/calibration.h"
#include "csrc/roofline/interpolation.h"
#include "csrc/roofline/model_shape.h"
#include "csrc/roofline/operators.h"

namespace kvfuse::roofline {

struct TimeParts {
  double products_ms = 0;
  double attention_ms = 0;
  double elementwise_ms = 0;
  double overhead_ms = 0;

  double total_ms() const { return products_ms + attention_ms + elementwise_ms + overhead_ms; }
};

class Predictor {
 public:
  // Throws std::invalid_argument as check_calibration does.
  explicit Predictor(const Calibration& calibration);

  // Of a measured size what was measured; between measured numbers of rows the logarithm of time follows the
  // logarithm of rows in a straight line, beyond the most rows time grows with them, below the fewest it
  // stays. A pair of in and out that was not measured has the rate interpolated between the nearest smaller
  // and larger weights, or that of the nearest. `step`: by the kernels of a decode step, where they were
  // measured with so many rows. Throws std::invalid_argument if no product in the format was measured.
  double product_seconds(Precision precision, std::int64_t rows, std::int64_t in, std::int64_t out,
                         bool step = false) const;

  // One layer's attention, by the same rule: with one query token the rate at which K and V are read, over
  // their bytes; with more the rate of visible pairs, over their number. `seconds` of `wanted` is not read.
  // Where no such attention was measured, the roofs.
  double attention_seconds(const AttentionRate& wanted, Precision arithmetic) const;

  // A pass whose weights, activations and arithmetic are in `dtype`, with Q, K and V in one product where a
  // layer owns its K and V.
  TimeParts pass(const ModelShape& model, const Pass& pass, Precision dtype, const KvStorage& kv) const;

  // Generating as in generation_cost of csrc/roofline/cost: the parts of all passes together.
  TimeParts generation(const ModelShape& model, bool cached, std::int64_t batch, std::int64_t prompt_length,
                       std::int64_t new_tokens, Precision dtype, const KvStorage& kv) const;

 private:
  double products_seconds(const ModelShape& model, const Pass& pass, Precision dtype) const;
  double elementwise_seconds(const ModelShape& model, const Pass& pass, Precision dtype) const;

  using Products =
      std::map<Precision, std::map<std::pair<std::int64_t, std::int64_t>, RowLine>>;  // by in, out

  const Calibration calibration_;
  Products products_;
  Products step_products_;
  std::int64_t most_step_rows_ = 0;
  std::map<std::pair<Precision, bool>, LogLine> attentions_;  // rates; of a decode step or of a prompt
};

}  // namespace kvfuse::roofline
