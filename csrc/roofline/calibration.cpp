#include "csrc/roofline/calibration.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>
#include <tuple>

#include "csrc/roofline/check.h"
#include "csrc/roofline/json_reader.h"

namespace kvfuse::roofline {
namespace {

constexpr std::int64_t kSchemaVersion = 1;
constexpr std::int64_t kMostSize = 1 << 26;

using Keys = std::vector<std::string>;

[[noreturn]] void twice(const std::string& what) {
  throw std::invalid_argument("roofline: calibration: expected every point once, got " + what + " twice");
}

std::string text(const ProductRate& p) {
  return std::string(precision_name(p.precision)) + " [" + std::to_string(p.rows) + ", " +
         std::to_string(p.in) + "] x [" + std::to_string(p.out) + ", " + std::to_string(p.in) + "]";
}

void check_product(const ProductRate& product) {
  check_range("products.rows", product.rows, 1, kMostSize);
  check_range("products.in", product.in, 1, kMostSize);
  check_range("products.out", product.out, 1, kMostSize);
  check_positive("products.seconds", product.seconds);
}

void check_products(const std::vector<ProductRate>& products) {
  std::set<std::tuple<Precision, std::int64_t, std::int64_t, std::int64_t>> seen;
  for (const ProductRate& p : products) {
    check_product(p);
    if (!seen.emplace(p.precision, p.rows, p.in, p.out).second) twice(text(p));
  }
}

void check_attention(const AttentionRate& rate) {
  check_range("attentions.batch", rate.batch, 1, kMostSize);
  check_range("attentions.n_head", rate.n_head, 1, 1024);
  check_range("attentions.n_kv_head", rate.n_kv_head, 1, 1024);
  check_divides("attentions.n_kv_head", rate.n_kv_head, "attentions.n_head", rate.n_head);
  check_range("attentions.head_dim", rate.head_dim, 1, 1 << 16);
  check_range("attentions.kv_len", rate.kv_len, 1, kMostSize);
  check_range("attentions.query_tokens", rate.query_tokens, 1, rate.kv_len);
  check_positive("attentions.seconds", rate.seconds);
}

ProductRate read_product(const json& value, const std::string& where) {
  static const Keys kKeys = {"precision", "rows", "in", "out", "seconds"};
  const JsonObject object(value, where, kKeys);
  return {.precision = parse_precision(object.text("precision")),
          .rows = object.whole("rows", 1, kMostSize),
          .in = object.whole("in", 1, kMostSize),
          .out = object.whole("out", 1, kMostSize),
          .seconds = object.positive("seconds")};
}

AttentionRate read_attention(const json& value, const std::string& where) {
  static const Keys kKeys = {"kv",       "batch",        "n_head", "n_kv_head",
                             "head_dim", "query_tokens", "kv_len", "seconds"};
  const JsonObject object(value, where, kKeys);
  return {.kv = parse_precision(object.text("kv")),
          .batch = object.whole("batch", 1, kMostSize),
          .n_head = object.whole("n_head", 1, 1024),
          .n_kv_head = object.whole("n_kv_head", 1, 1024),
          .head_dim = object.whole("head_dim", 1, 1 << 16),
          .query_tokens = object.whole("query_tokens", 1, kMostSize),
          .kv_len = object.whole("kv_len", 1, kMostSize),
          .seconds = object.positive("seconds")};
}

// Reads every element of an array.
template <typename T, typename Read>
std::vector<T> read_all(const JsonObject& parent, const char* key, Read&& read) {
  std::vector<T> all;
  const json& values = parent.array(key);
  for (std::size_t i = 0; i < values.size(); ++i)
    all.push_back(read(values[i], parent.where(key) + "[" + std::to_string(i) + "]"));
  return all;
}

json products_json(const std::vector<ProductRate>& products) {
  json list = json::array();
  for (const ProductRate& p : products)
    list.push_back({{"precision", precision_name(p.precision)},
                    {"rows", p.rows},
                    {"in", p.in},
                    {"out", p.out},
                    {"seconds", p.seconds}});
  return list;
}

double weight_bytes(const ProductRate& p) {
  return matrix_bytes(p.precision, static_cast<double>(p.out), p.in);
}

}  // namespace

double attention_bytes(const AttentionRate& a) {
  return 2 * matrix_bytes(a.kv, static_cast<double>(a.batch * a.kv_len * a.n_kv_head), a.head_dim);
}

double attention_flops(const AttentionRate& a) {
  const auto queries = static_cast<double>(a.query_tokens);
  const auto length = static_cast<double>(a.kv_len);
  const double pairs = queries * (length - queries) + queries * (queries + 1) / 2;
  return 4 * static_cast<double>(a.batch * a.n_head * a.head_dim) * pairs;
}

void check_calibration(const Calibration& calibration) {
  if (calibration.machine.empty())
    throw std::invalid_argument("roofline: calibration: expected machine to name it, got an empty string");
  if (calibration.kind != "cpu" && calibration.kind != "gpu")
    throw std::invalid_argument("roofline: calibration: expected kind to be \"cpu\" or \"gpu\", got \"" +
                                calibration.kind + "\"");
  check_range("num_threads", calibration.num_threads, 1, 1 << 20);
  check_positive("read_bytes_per_s", calibration.read_bytes_per_s);
  check_not_negative("usual_read_bytes_per_s", calibration.usual_read_bytes_per_s);
  if (calibration.usual_read_bytes_per_s > calibration.read_bytes_per_s)
    throw std::invalid_argument(
        "roofline: calibration: expected usual_read_bytes_per_s at most read_bytes_per_s, got more");
  check_positive("elementwise_bytes_per_s", calibration.elementwise_bytes_per_s);
  check_not_negative("pass_overhead_s", calibration.pass_overhead_s);
  if (calibration.products.empty())
    throw std::invalid_argument("roofline: calibration: expected at least one product, got none");
  check_products(calibration.products);
  check_products(calibration.step_products);
  std::set<std::tuple<Precision, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                      std::int64_t>>
      attentions;
  for (const AttentionRate& a : calibration.attentions) {
    check_attention(a);
    if (!attentions.emplace(a.kv, a.batch, a.n_head, a.n_kv_head, a.head_dim, a.query_tokens, a.kv_len)
             .second)
      twice("an attention over " + std::to_string(a.kv_len) + " tokens");
  }
}

Calibration read_calibration(std::string_view json_text, const std::string& origin) {
  static const Keys kKeys = {"schema_version",
                             "machine",
                             "kind",
                             "num_threads",
                             "time",
                             "read_bytes_per_s",
                             "usual_read_bytes_per_s",
                             "elementwise_bytes_per_s",
                             "pass_overhead_s",
                             "products",
                             "step_products",
                             "attentions"};
  const json parsed = parse_strictly(json_text, origin);
  const JsonObject object(parsed, origin, kKeys);
  object.whole("schema_version", kSchemaVersion, kSchemaVersion);
  try {
    Calibration calibration{.machine = object.text("machine"),
                            .kind = object.text("kind"),
                            .num_threads = object.whole("num_threads", 1, 1 << 20),
                            .time = object.text("time"),
                            .read_bytes_per_s = object.positive("read_bytes_per_s"),
                            .usual_read_bytes_per_s = 0,
                            .elementwise_bytes_per_s = object.positive("elementwise_bytes_per_s"),
                            .pass_overhead_s = object.not_negative("pass_overhead_s"),
                            .products = read_all<ProductRate>(object, "products", read_product),
                            .step_products = {},
                            .attentions = read_all<AttentionRate>(object, "attentions", read_attention)};
    if (object.has("usual_read_bytes_per_s"))
      calibration.usual_read_bytes_per_s = object.positive("usual_read_bytes_per_s");
    if (object.has("step_products"))
      calibration.step_products = read_all<ProductRate>(object, "step_products", read_product);
    check_calibration(calibration);
    return calibration;
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    throw std::invalid_argument(message.starts_with(origin) ? message : origin + ": " + message);
  }
}

std::string calibration_json(const Calibration& calibration) {
  check_calibration(calibration);
  json attentions = json::array();
  for (const AttentionRate& a : calibration.attentions)
    attentions.push_back({{"kv", precision_name(a.kv)},
                          {"batch", a.batch},
                          {"n_head", a.n_head},
                          {"n_kv_head", a.n_kv_head},
                          {"head_dim", a.head_dim},
                          {"query_tokens", a.query_tokens},
                          {"kv_len", a.kv_len},
                          {"seconds", a.seconds}});
  json file = {{"schema_version", kSchemaVersion},
               {"machine", calibration.machine},
               {"kind", calibration.kind},
               {"num_threads", calibration.num_threads},
               {"time", calibration.time},
               {"read_bytes_per_s", calibration.read_bytes_per_s},
               {"elementwise_bytes_per_s", calibration.elementwise_bytes_per_s},
               {"pass_overhead_s", calibration.pass_overhead_s},
               {"products", products_json(calibration.products)},
               {"attentions", attentions}};
  if (calibration.usual_read_bytes_per_s > 0)
    file["usual_read_bytes_per_s"] = calibration.usual_read_bytes_per_s;
  if (!calibration.step_products.empty()) file["step_products"] = products_json(calibration.step_products);
  return file.dump(1) + "\n";
}

MachineLimits roofs(const Calibration& calibration, Precision precision) {
  MachineLimits limits{.read_bytes_per_s = calibration.read_bytes_per_s, .matmul_flops_per_s = 0};
  for (const std::vector<ProductRate>* products : {&calibration.products, &calibration.step_products})
    for (const ProductRate& product : *products) {
      limits.read_bytes_per_s = std::max(limits.read_bytes_per_s, weight_bytes(product) / product.seconds);
      if (product.precision == precision)
        limits.matmul_flops_per_s = std::max(limits.matmul_flops_per_s, product.flops_per_s());
    }
  if (limits.matmul_flops_per_s == 0)
    throw std::invalid_argument("roofline: calibration of " + calibration.machine +
                                ": expected products in " + std::string(precision_name(precision)) +
                                ", got none");
  return limits;
}

Calibration at_bandwidth(const Calibration& calibration, double read_bytes_per_s) {
  check_positive("read_bytes_per_s", read_bytes_per_s);
  const double usual = calibration.usual_read_bytes_per_s > 0 ? calibration.usual_read_bytes_per_s
                                                              : calibration.read_bytes_per_s;
  if (usual == read_bytes_per_s) return calibration;
  const auto change = [&](double& seconds, double bytes) {
    const double then = bytes / usual;
    const double now = bytes / read_bytes_per_s;
    seconds = seconds > then ? std::sqrt(seconds * seconds - then * then + now * now) : seconds * now / then;
  };
  Calibration result = calibration;
  for (std::vector<ProductRate>* products : {&result.products, &result.step_products})
    for (ProductRate& p : *products) change(p.seconds, weight_bytes(p));
  for (AttentionRate& a : result.attentions) change(a.seconds, attention_bytes(a));
  result.read_bytes_per_s = result.usual_read_bytes_per_s = read_bytes_per_s;
  return result;
}

Hardware calibrated_hardware(const Calibration& calibration, const std::string& name) {
  const std::string source = "calibration of " + calibration.time;
  Hardware hardware{.name = name,
                    .title = calibration.machine,
                    .kind = calibration.kind,
                    .profile = Profile::kCalibrated,
                    .aliases = {},
                    .bandwidth_gb_s = {},
                    .peak_tflop_s = {},
                    .memory_gb = {},
                    .l2_mb = {},
                    .multiprocessors = {},
                    .note = "with " + std::to_string(calibration.num_threads) + " threads"};
  for (const ProductRate& product : calibration.products) {
    const MachineLimits limits = roofs(calibration, product.precision);
    hardware.bandwidth_gb_s = {limits.read_bytes_per_s / 1e9, source};
    hardware.peak_tflop_s[product.precision] = {limits.matmul_flops_per_s / 1e12, source};
  }
  return hardware;
}

}  // namespace kvfuse::roofline
