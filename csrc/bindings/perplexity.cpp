// Perplexity as Python sees it: cutting a text, scoring it, and the fields of its record.
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "csrc/bindings/computing.h"
#include "csrc/bindings/json.h"
#include "csrc/bindings/model.h"
#include "csrc/model/perplexity.h"
#include "csrc/records/perplexity_record.h"

namespace py = pybind11;

namespace kvfuse {
namespace {

Windows cut_tokens(const std::vector<std::uint16_t>& tokens, const ModelConfig& model,
                   const PerplexityFacts& facts, std::int64_t batch_size) {
  return cut(tokens, {.block_size = model.block_size,
                      .batch_size = batch_size,
                      .max_tokens = facts.max_tokens,
                      .document_separator = facts.document_separator,
                      .overflow = facts.overflow});
}

Score score_windows(const PreparedModel& self, const Windows& windows, const PerplexityFacts& facts,
                    const PreparedModel* reference, const py::object& on_scored) {
  const ScoredModel scored{self.model, self.strategy};
  const ScoredModel other =
      reference == nullptr ? scored : ScoredModel{reference->model, reference->strategy};
  Score found;
  Interruptible call(/*aside=*/self.model.weights().device().is_cpu());
  call.run([&] {
    found = score(scored, windows,
                  {.autoregressive = facts.autoregressive,
                   .overflow = facts.overflow,
                   .reference = reference == nullptr ? nullptr : &other,
                   .on_scored = [&](std::int64_t tokens) { return call.tell(on_scored, tokens); }});
  });
  return found;
}

TextSize size_of_text(const Windows& windows, const py::function& decode) {
  return scored_text(windows, [&](std::span<const std::uint16_t> ids) {
    return decode(std::vector<std::uint16_t>(ids.begin(), ids.end())).cast<std::string>();
  });
}

}  // namespace

void bind_perplexity(py::module_& module) {
  py::class_<PerplexityFacts>(module, "PerplexityFacts")
      .def(py::init([](const std::string& dataset, const std::string& sha256, bool autoregressive,
                       std::optional<std::int64_t> max_tokens, std::optional<std::int64_t> document_separator,
                       const OverflowPolicy& overflow) {
             return PerplexityFacts{dataset, sha256, autoregressive, max_tokens, document_separator,
                                    overflow};
           }),
           py::kw_only(), py::arg("dataset"), py::arg("dataset_sha256"), py::arg("autoregressive"),
           py::arg("max_tokens"), py::arg("document_separator"), py::arg("overflow"));
  py::class_<Windows>(module, "Windows")
      .def(py::init(&cut_tokens))
      .def_readonly("count", &Windows::count)
      .def_readonly("predicted", &Windows::predicted);
  py::class_<TextSize>(module, "TextSize").def(py::init(&size_of_text));
  py::class_<Score>(module, "Score")
      .def_readonly("loss", &Score::loss)
      .def_property_readonly("problem", &score_problem);
  module.def("score", &score_windows, Computing());
  module.def("perplexity_fields", &perplexity_fields);
  module.def("score_fields", &score_fields);
}

}  // namespace kvfuse
