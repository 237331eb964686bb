// The roofline toolkit's results as JSON, each under its field names.
#pragma once

#include "csrc/records/record.h"
#include "csrc/roofline/attention_model.h"
#include "csrc/roofline/block_codec.h"
#include "csrc/roofline/dynamic_quantization.h"
#include "csrc/roofline/predictor.h"
#include "csrc/roofline/published.h"
#include "csrc/roofline/recommend.h"
#include "csrc/roofline/sweep.h"
#include "csrc/roofline/validation.h"

namespace kvfuse::roofline {

json to_json(const PrecisionInfo& info);
json to_json(const Hardware& hardware);
json to_json(const GemmPrediction& prediction);
json to_json(const ModelShape& model);
json to_json(const WeightCount& count);
json to_json(const OperatorPrecisions& precisions);
json to_json(const MixedPrecision& strategy);
json to_json(const PassPrediction& prediction);
json to_json(const GenerationPrediction& prediction);
json to_json(const AttentionPrediction& prediction);
json to_json(const Recommendation& recommendation);
json to_json(const PublishedRow& row);
json to_json(const DynamicDecision& decision);
json to_json(const CodecQuality& quality);
json to_json(const ModelPoint& point);
json to_json(const TimeParts& parts);
json to_json(const MachineLimits& limits);
json to_json(const Validation& validation);

template <typename T>
json list_json(const T& values) {
  json list = json::array();
  for (const auto& value : values) list.push_back(to_json(value));
  return list;
}

}  // namespace kvfuse::roofline
