// Answers questions from stdin with the numbers of the C++ library, for the Python tests: one line of
// hexadecimal floating-point numbers, which lose nothing, for each line
//   gemm HARDWARE PROFILE PRECISION M N K
//   pass HARDWARE PROFILE MODEL STRATEGY BATCH PAST TOKENS
//   attention HARDWARE PROFILE BATCH N_HEAD N_KV_HEAD HEAD_DIM QUERY_TOKENS KV_LEN
//   recommend HARDWARE PROFILE MODEL PHASE SEQ_LEN BATCH
#include <cstdio>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>

#include "csrc/roofline/recommend.h"

namespace {

using namespace kvfuse::roofline;

template <typename T>
T word(std::istream& line) {
  T value{};
  if (!(line >> value)) throw std::runtime_error("a word is missing or of another type");
  return value;
}
std::int64_t number(std::istream& line) { return word<std::int64_t>(line); }

const Hardware& hardware_of(std::istream& line) {
  const auto name = word<std::string>(line);
  return HardwareRegistry::builtin().find(name, parse_profile(word<std::string>(line)));
}

using Numbers = std::vector<double>;

Numbers gemm(std::istream& line) {
  const Hardware& hardware = hardware_of(line);
  const Precision precision = parse_precision(word<std::string>(line));
  const std::int64_t M = number(line), N = number(line), K = number(line);
  const GemmPrediction p = predict_gemm(hardware, {M, N, K}, precision);
  return {p.flops,
          p.bytes,
          p.weight_bytes,
          p.ai,
          p.critical_ai,
          p.memory_time_us,
          p.compute_time_us,
          p.predicted_time_us,
          p.predicted_tflops,
          p.predicted_bandwidth_gb_s};
}

Numbers pass(std::istream& line) {
  const Hardware& hardware = hardware_of(line);
  const ModelShape& model = llama_preset(word<std::string>(line));
  const OperatorPrecisions& precisions = find_mixed_precision(word<std::string>(line)).precisions;
  const std::int64_t batch = number(line), past = number(line), tokens = number(line);
  const PassPrediction p =
      predict_pass(hardware, model, {.batch = batch, .past = past, .tokens = tokens}, precisions);
  Numbers numbers = {p.flops, p.weight_bytes, p.cache_bytes, p.activation_bytes, p.bytes,
                     p.ai,    p.memory_ms,    p.compute_ms,  p.time_ms,          p.shortest_ms};
  for (const OperatorPrediction& one : p.operators)
    numbers.insert(numbers.end(), {one.flops, one.bytes, one.ai, one.critical_ai, one.memory_ms,
                                   one.compute_ms, one.time_ms});
  return numbers;
}

Numbers attention(std::istream& line) {
  const Hardware& hardware = hardware_of(line);
  AttentionShape shape;
  shape.batch = number(line);
  shape.n_head = number(line);
  shape.n_kv_head = number(line);
  shape.head_dim = number(line);
  shape.query_tokens = number(line);
  shape.kv_len = number(line);
  Numbers numbers;
  for (const AttentionPrediction& one : compare_attention(hardware, shape))
    numbers.insert(numbers.end(),
                   {one.flops, one.bytes, one.ai, one.memory_ms, one.compute_ms, one.time_ms, one.speedup});
  return numbers;
}

Numbers recommendation(std::istream& line) {
  const Hardware& hardware = hardware_of(line);
  RecommendRequest request;
  request.model = llama_preset(word<std::string>(line));
  request.phase = parse_phase(word<std::string>(line));
  request.seq_len = number(line);
  request.batch = number(line);
  const Recommendation r = recommend(hardware, request);
  Numbers numbers = {r.predicted_time_ms, r.baseline_time_ms, r.predicted_speedup,
                     r.memory_saving,     r.weight_bytes,     r.kv_cache_bytes};
  for (const Candidate& one : r.candidates)
    numbers.insert(numbers.end(),
                   {one.time_ms, one.speedup, one.weight_bytes, one.kv_cache_bytes, one.memory_saving});
  return numbers;
}

Numbers answer(const std::string& question) {
  std::istringstream line(question);
  const auto what = word<std::string>(line);
  if (what == "gemm") return gemm(line);
  if (what == "pass") return pass(line);
  if (what == "attention") return attention(line);
  if (what == "recommend") return recommendation(line);
  throw std::runtime_error("unknown question " + what);
}

}  // namespace

int main() {
  try {
    for (std::string question; std::getline(std::cin, question);) {
      for (const double value : answer(question)) std::printf("%a ", value);
      std::printf("\n");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "roofline_probe: %s\n", error.what());
    return 1;
  }
  return 0;
}
