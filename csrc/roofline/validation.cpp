#include "csrc/roofline/validation.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "csrc/roofline/check.h"
#include "csrc/roofline/json_reader.h"
#include "csrc/roofline/predictor.h"

namespace kvfuse::roofline {
namespace {

constexpr std::int64_t kSchemaVersion = 1;
constexpr std::int64_t kMost = 1 << 26;

// A record as the predictor takes it.
struct Case {
  ModelShape model;
  bool cached = true;
  Precision dtype = Precision::kFp32;
  KvStorage kv;
  std::int64_t past = 0;  // of a stage
  std::optional<MachineLimits> own_limits;
};

// Getters that ignore what they do not know, unlike JsonObject: a newer runner may say more.
class Record {
 public:
  Record(const json& value, std::string where) : value_(value), where_(std::move(where)) {}

  const json& at(const char* key) const {
    const auto found = value_.find(key);
    if (found == value_.end())
      throw std::invalid_argument(where_ + ": expected the field \"" + key + "\", got none");
    return *found;
  }
  std::string text(const char* key) const {
    const json& value = at(key);
    if (!value.is_string()) wrong(key, "a string");
    return value.get<std::string>();
  }
  bool flag(const char* key) const {
    const json& value = at(key);
    if (!value.is_boolean()) wrong(key, "true or false");
    return value.get<bool>();
  }
  std::int64_t whole(const char* key) const {
    const json& value = at(key);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > static_cast<std::uint64_t>(kMost))
      wrong(key, "a whole number from 0 to 67108864");
    return value.get<std::int64_t>();
  }
  double positive(const char* key) const {
    const json& value = at(key);
    if (!value.is_number() || !(value.get<double>() > 0)) wrong(key, "a positive number");
    return value.get<double>();
  }
  bool has_number(const char* key) const {
    const auto found = value_.find(key);
    return found != value_.end() && found->is_number();
  }
  bool has_object(const char* key) const {
    const auto found = value_.find(key);
    return found != value_.end() && found->is_object();
  }
  Record object(const char* key) const {
    if (!at(key).is_object()) wrong(key, "an object");
    return {at(key), where_ + ": " + key};
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    const auto found = value_.find(key);
    return found != value_.end() && found->is_string() ? found->get<std::string>() : otherwise;
  }

 private:
  [[noreturn]] void wrong(const char* key, const char* expected) const {
    throw std::invalid_argument(where_ + ": expected \"" + key + "\" to be " + expected);
  }
  const json& value_;
  const std::string where_;
};

ModelShape model_of(const Record& record) {
  const Record config = record.object("model_config");
  ModelShape model = gpt2_shape(config.whole("n_layer"), config.whole("n_head"), config.whole("n_embd"),
                                config.whole("vocab_size"), config.whole("block_size"), config.flag("bias"));
  const std::int64_t group = std::max<std::int64_t>(record.whole("sharing_group"), 1);
  model.borrowing_layers = model.n_layer - (model.n_layer + group - 1) / group;
  check_model(model);
  return model;
}

Case case_of(const Record& record) {
  Case result;
  result.model = model_of(record);
  result.dtype = parse_precision(record.text("dtype"));
  result.cached = record.flag("use_cache");
  const bool int8 = record.text("kv_cache_dtype") == "int8";
  result.kv.precision = int8 ? Precision::kInt8 : result.dtype;
  if (record.has_number("read_bandwidth_bytes_per_s") && record.has_number("matmul_flops_per_s"))
    result.own_limits = {.read_bytes_per_s = record.positive("read_bandwidth_bytes_per_s"),
                         .matmul_flops_per_s = record.positive("matmul_flops_per_s")};
  return result;
}

// As csrc/roofline/cost takes it.
TransformerShape shape_of(const Case& one) {
  const WeightCount count = count_weights(one.model);
  const auto element_bytes = static_cast<std::int64_t>(precision_info(one.dtype).payload_bits / 8);
  const double kv = one.cached ? kv_cache_bytes(one.model, 1, 1, one.kv) : 0;
  return {.n_layer = one.model.n_layer,
          .borrowing_layers = one.model.borrowing_layers,
          .n_embd = one.model.n_embd,
          .vocab_size = one.model.vocab_size,
          .weight_bytes = static_cast<std::int64_t>(count.total() - count.position) * element_bytes,
          .element_bytes = element_bytes,
          .kv_bytes_per_token = static_cast<std::int64_t>(kv)};
}

// The calibration, at the bandwidth of the record's own run where it carries one.
std::optional<Calibration> calibration_of(const Case& one, const Calibration* calibration) {
  if (calibration == nullptr) return std::nullopt;
  return one.own_limits ? at_bandwidth(*calibration, one.own_limits->read_bytes_per_s) : *calibration;
}

MachineLimits limits_of(const Case& one, const std::optional<Calibration>& measured) {
  return one.own_limits ? *one.own_limits : roofs(*measured, one.dtype);
}

void predict_latency(const Case& one, const std::optional<Calibration>& measured, ValidatedRecord& result) {
  const GenerationCost cost = generation_cost(shape_of(one), one.cached, result.batch, result.prompt_length,
                                              result.T, limits_of(one, measured));
  result.flops = cost.total.flops;
  result.bytes = cost.total.bytes;
  result.shortest_ms = cost.shortest_ms;
  result.predicted_ms = measured ? Predictor(*measured)
                                       .generation(one.model, one.cached, result.batch, result.prompt_length,
                                                   result.T, one.dtype, one.kv)
                                       .total_ms()
                                 : cost.shortest_ms;
}

void predict_stage(const Case& one, const std::optional<Calibration>& measured, ValidatedRecord& result) {
  const Pass pass{.batch = result.batch, .past = one.past, .tokens = result.T};
  check_pass(pass);
  const Cost cost = forward_cost(shape_of(one), pass.batch, pass.past, pass.tokens);
  result.flops = cost.flops;
  result.bytes = cost.bytes;
  result.shortest_ms = shortest_ms(cost, limits_of(one, measured));
  result.predicted_ms = measured ? Predictor(*measured).pass(one.model, pass, one.dtype, one.kv).total_ms()
                                 : result.shortest_ms;
}

// Why a record has nothing to be compared; "" if it has.
std::string skip_reason(const Record& record) {
  const std::string benchmark = record.text("benchmark_name");
  if (benchmark != "latency_vs_T" && benchmark != "roofline")
    return "the benchmark " + benchmark + " measures no time to predict";
  const std::string status = record.text("status");
  if (status != "ok") return "its status is " + status;
  const std::string implementation = record.text_or("implementation_name", "kvfuse");
  if (implementation != "kvfuse") return "it is of another implementation, " + implementation;
  const std::string weights = record.text_or("weight_dtype", "model");
  if (weights != "model") return "its weights are kept in " + weights;
  const std::string dtype = record.text("dtype");
  if (dtype != "float32" && dtype != "float16" && dtype != "bfloat16") return "its dtype is " + dtype;
  return "";
}

// Why a calibration says nothing about the machine of a record; "" if it does.
std::string other_machine(const Record& record, const Calibration& calibration) {
  if (!record.has_object("context")) return "";
  const Record context = record.object("context");
  const std::string device = context.text_or("device", "cpu");
  const std::string kind = device.starts_with("cuda") ? "gpu" : "cpu";
  if (kind != calibration.kind)
    return "it ran on a " + kind + ", the calibration is of a " + calibration.kind;
  if (kind == "cpu" && context.has_number("num_threads") &&
      context.whole("num_threads") != calibration.num_threads)
    return "it ran with " + std::to_string(context.whole("num_threads")) + " threads, the calibration with " +
           std::to_string(calibration.num_threads);
  return "";
}

// Throws, or returns a reason to skip.
std::string validate_record(const Record& record, const Calibration* calibration, ValidatedRecord& result) {
  std::string reason = skip_reason(record);
  if (reason.empty() && calibration != nullptr) reason = other_machine(record, *calibration);
  if (!reason.empty()) return reason;
  Case one = case_of(record);
  result.benchmark = record.text("benchmark_name");
  result.version = record.text("version");
  result.model = record.text_or("pretrained", "");
  result.dtype = record.text("dtype");
  result.batch = record.whole("batch_size");
  result.prompt_length = record.whole("prompt_length");
  result.measured_ms = record.positive("time_total_ms_median");
  if (calibration == nullptr && !one.own_limits) return "it carries no limits and there is no calibration";
  const std::optional<Calibration> measured = calibration_of(one, calibration);
  if (result.benchmark == "roofline") {
    result.stage = record.text("stage");
    result.T = record.whole("pass_tokens");
    const bool decode = one.cached && result.stage.ends_with("_decode");
    one.past = decode ? result.prompt_length : 0;
    predict_stage(one, measured, result);
  } else {
    result.T = record.whole("T");
    if (result.prompt_length + result.T - 1 > one.model.block_size)
      return "it outgrows the context of " + std::to_string(one.model.block_size) + " tokens";
    check_range("T", result.T, 1, 1 << 17);  // the time to predict grows with it
    predict_latency(one, measured, result);
  }
  result.error = (result.predicted_ms - result.measured_ms) / result.measured_ms;
  result.above_roof = result.measured_ms < result.shortest_ms;
  return "";
}

void summarise(Validation& result) {
  if (result.records.empty()) return;
  std::vector<double> errors;
  for (const ValidatedRecord& record : result.records) {
    errors.push_back(std::fabs(record.error));
    result.above_roof += record.above_roof ? 1 : 0;
  }
  std::ranges::sort(errors);
  const std::size_t half = errors.size() / 2;
  result.median_absolute_error =
      errors.size() % 2 == 1 ? errors[half] : (errors[half - 1] + errors[half]) / 2;
  result.largest_absolute_error = errors.back();
}

}  // namespace

Validation validate(std::string_view jsonl, const std::string& origin, const Calibration* calibration) {
  Validation result;
  if (calibration != nullptr) {
    check_calibration(*calibration);
    result.machine = calibration->machine;
  }
  std::int64_t line = 0;
  for (std::size_t begin = 0; begin < jsonl.size();) {
    const std::size_t end = std::min(jsonl.find('\n', begin), jsonl.size());
    const std::string_view text = jsonl.substr(begin, end - begin);
    begin = end + 1;
    ++line;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = origin + ":" + std::to_string(line);
    const json parsed = parse_strictly(text, where);
    if (!parsed.is_object()) throw std::invalid_argument(where + ": expected a record, an object");
    const Record record(parsed, where);
    if (record.whole("schema_version") > kSchemaVersion)
      throw std::invalid_argument(where + ": expected schema_version 1, got a newer one");
    ValidatedRecord one;
    one.line = line;
    try {
      const std::string reason = validate_record(record, calibration, one);
      if (reason.empty())
        result.records.push_back(one);
      else
        result.skipped.push_back({line, reason});
    } catch (const std::invalid_argument& error) {
      const std::string message = error.what();
      throw std::invalid_argument(message.starts_with(where) ? message : where + ": " + message);
    }
  }
  summarise(result);
  return result;
}

}  // namespace kvfuse::roofline
