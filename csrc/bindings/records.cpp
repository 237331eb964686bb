// Results files as Python sees them.
#include "csrc/records/record.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "csrc/bindings/json.h"
#include "csrc/bindings/model.h"
#include "csrc/records/perplexity_record.h"
#include "csrc/versions/registry.h"

namespace py = pybind11;

namespace kvfuse {
namespace {

Status find_status(const std::string& name) {
  for (const Status status :
       {Status::kOk, Status::kSkipped, Status::kOom, Status::kFailed, Status::kInterrupted})
    if (status_name(status) == name) return status;
  throw std::invalid_argument("record: expected a status of ok, skipped, oom, failed or interrupted, got \"" +
                              name + "\"");
}

// The model of a run comes without a version: each of its cases names one.
RunFacts run_facts(const std::string& model_name, const ModelConfig& model, const std::string& dtype,
                   std::optional<std::string> weights, const std::vector<std::string>& transforms,
                   at::Device device, std::int64_t batch_size, std::int64_t seed,
                   std::optional<std::string> calibration, std::optional<std::string> calibration_sha256,
                   std::optional<std::int64_t> calibration_tokens, const std::string& python_version) {
  RunFacts facts;
  facts.model_name = model_name;
  facts.model = model;
  facts.dtype = dtype;
  facts.weights = std::move(weights);
  facts.transforms = find_transforms(transforms);
  facts.device = device;
  facts.batch_size = batch_size;
  facts.seed = seed;
  if (calibration_tokens)
    facts.calibration = {std::move(calibration), std::move(calibration_sha256), *calibration_tokens};
  facts.python_version = python_version;
  return facts;
}

}  // namespace

void bind_records(py::module_& module) {
  py::class_<RunFacts>(module, "RunFacts")
      .def(py::init(&run_facts), py::kw_only(), py::arg("model_name"), py::arg("model"), py::arg("dtype"),
           py::arg("weights"), py::arg("transforms"), py::arg("device"), py::arg("batch_size"),
           py::arg("seed"), py::arg("calibration"), py::arg("calibration_sha256"),
           py::arg("calibration_tokens"), py::arg("python_version"))
      .def("perplexity_case",
           [](const RunFacts& self, const PerplexityFacts& facts, const std::string& version) {
             return perplexity_case(self, facts, find_version(version));
           })
      .def("metadata", [](const RunFacts& self, const std::string& version, const PreparedModel* model) {
        return metadata_fields(self, find_version(version),
                               model == nullptr ? std::span<const LayerFit>() : model->fits);
      });
  module.def("make_record", [](const std::string& benchmark, const json& case_key, const std::string& status,
                               const std::string& reason) {
    return make_record(benchmark, case_key, find_status(status), reason);
  });
  py::class_<RecordLog>(module, "RecordLog")
      .def(py::init([](const std::string& path, bool clear) {
             return std::make_unique<RecordLog>(path, RecordLogOptions{.sync = true, .clear = clear});
           }),
           py::arg("path"), py::kw_only(), py::arg("clear") = false)
      .def("append", &RecordLog::append)
      .def("done", &RecordLog::done)
      .def("recorded_perplexity", &recorded_perplexity)
      .def_property_readonly("notices", &RecordLog::notices);
}

}  // namespace kvfuse
