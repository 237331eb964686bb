#include "csrc/records/perplexity_record.h"

#include <cmath>

namespace kvfuse {
namespace {

const char* mode_name(const PerplexityFacts& facts) {
  return facts.autoregressive ? "autoregressive" : "teacher_forcing";
}

json or_null(const std::optional<std::int64_t>& value) { return value ? json(*value) : json(nullptr); }

json text_fields(double loss, const Windows& windows, const std::optional<TextSize>& text) {
  if (!text) return {{"word_perplexity", nullptr}, {"byte_perplexity", nullptr}, {"bits_per_byte", nullptr}};
  const double nats = loss * static_cast<double>(windows.predicted);
  const double nats_per_byte = nats / static_cast<double>(text->bytes);
  return {{"num_words", text->words},
          {"num_bytes", text->bytes},
          {"word_perplexity", std::exp(nats / static_cast<double>(text->words))},
          {"byte_perplexity", std::exp(nats_per_byte)},
          {"bits_per_byte", nats_per_byte / std::log(2.0)}};
}

}  // namespace

json perplexity_case(const RunFacts& run, const PerplexityFacts& facts, const Strategy& strategy) {
  json key = case_fields(run, kPerplexityName, strategy);
  key.update({{"dataset_sha256", facts.dataset_sha256},
              {"mode", mode_name(facts)},
              {"max_tokens", or_null(facts.max_tokens)}});
  if (facts.document_separator) key["document_separator"] = *facts.document_separator;
  if (facts.overflow.kind != Overflow::kError) key["overflow"] = overflow_json(facts.overflow);
  return key;
}

json perplexity_fields(const PerplexityFacts& facts, const Windows& windows, double elapsed_s) {
  return {{"dataset", facts.dataset},
          {"dataset_sha256", facts.dataset_sha256},
          {"mode", mode_name(facts)},
          {"window", windows.window},
          {"stride", windows.stride},
          {"overflow", overflow_json(facts.overflow)},
          {"document_separator", or_null(facts.document_separator)},
          {"num_windows", windows.count},
          {"num_tokens", windows.predicted},
          {"bos", nullptr},
          {"elapsed_s", elapsed_s}};
}

json score_fields(const Score& score, const Windows& windows, const std::optional<TextSize>& text,
                  std::optional<double> baseline) {
  const double perplexity = std::exp(score.loss);
  json fields = {{"loss", score.loss},
                 {"perplexity", perplexity},
                 {"degradation", baseline ? json(100.0 * (perplexity / *baseline - 1.0)) : json(nullptr)},
                 {"divergence", score.divergence}};
  fields.update(text_fields(score.loss, windows, text));
  return fields;
}

std::optional<double> recorded_perplexity(const RecordLog& log, const json& case_key) {
  std::optional<double> found;
  log.for_each([&](const json& record) {
    const auto is = [&](const char* key, const json& value) {
      const auto field = record.find(key);
      return field != record.end() && *field == value;
    };
    if (!is("benchmark_name", kPerplexityName) || !is("case", case_key)) return;
    const auto perplexity = record.find("perplexity");
    found.reset();
    if (is("status", status_name(Status::kOk)) && perplexity != record.end() && perplexity->is_number())
      found = perplexity->get<double>();
  });
  return found;
}

std::string score_problem(const Score& score) {
  return std::isfinite(score.loss) ? "" : "the loss is not finite (are the weights damaged?)";
}

}  // namespace kvfuse
