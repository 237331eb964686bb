// What a machine was measured to do: the rates that a prediction in milliseconds rests on, and the file that
// keeps them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/roofline/cost.h"
#include "csrc/roofline/hardware.h"
#include "csrc/roofline/precision.h"

namespace kvfuse::roofline {

// [rows, in] times the transpose of [out, in], weights read from memory as in a model that is larger than the
// caches.
struct ProductRate {
  Precision precision = Precision::kFp32;  // of weights and activations
  std::int64_t rows = 1;
  std::int64_t in = 0;
  std::int64_t out = 0;
  double seconds = 0;

  double flops_per_s() const {
    return 2 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out) / seconds;
  }
};

// One layer's attention, K and V read from memory; query_tokens of 1 is a decode step.
struct AttentionRate {
  Precision kv = Precision::kFp32;  // that the cache keeps
  std::int64_t batch = 1;
  std::int64_t n_head = 1;
  std::int64_t n_kv_head = 1;
  std::int64_t head_dim = 64;
  std::int64_t query_tokens = 1;
  std::int64_t kv_len = 1;
  double seconds = 0;
};

double attention_bytes(const AttentionRate& rate);  // of K and V, scales included
double attention_flops(const AttentionRate& rate);  // of scores and values, for the pairs that are visible

struct Calibration {
  std::string machine;  // as a person reads it
  std::string kind = "cpu";
  std::int64_t num_threads = 1;
  std::string time;                    // of measuring, ISO 8601
  double read_bytes_per_s = 0;         // at best
  double usual_read_bytes_per_s = 0;   // at the moments of the times below; 0: the best
  double elementwise_bytes_per_s = 0;  // read and written by operations such as norms, operands in cache
  double pass_overhead_s = 0;          // of a pass, beside its products, attention and element-wise work
  std::vector<ProductRate> products;
  std::vector<ProductRate> step_products;  // where a decode step of a few rows has kernels of its own
  std::vector<AttentionRate> attentions;
};

// Throws std::invalid_argument naming the field: nothing measured of products, a size or time out of range, a
// point measured twice.
void check_calibration(const Calibration& calibration);

// JSON, as calibration_json writes it. Throws std::invalid_argument: "<origin>: ...", also on what
// check_calibration refuses.
Calibration read_calibration(std::string_view json_text, const std::string& origin);
std::string calibration_json(const Calibration& calibration);

// The roofs: read bandwidth and the fastest product in a format. No measured product lies above them, as what
// reads faster than that bandwidth raises it. Throws std::invalid_argument if no product in the format was
// measured.
MachineLimits roofs(const Calibration& calibration, Precision precision);

// The same machine at a moment when reading gives `read_bytes_per_s`. Of a measured time t that moves bytes
// for m seconds at the usual bandwidth, the rest is work that reading partly hides: c = sqrt(t^2 - m^2),
// half-way between hiding it all (the larger of both) and nothing (their sum). It stays, and m changes as the
// bandwidth. What takes less than m, out of a cache, changes as a whole. Throws std::invalid_argument on a
// bandwidth that is not positive.
Calibration at_bandwidth(const Calibration& calibration, double read_bytes_per_s);

// As a machine of the registry, with profile kCalibrated.
Hardware calibrated_hardware(const Calibration& calibration, const std::string& name);

}  // namespace kvfuse::roofline
