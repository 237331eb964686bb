// kvfuse._C: what Python needs to know of the C++ side besides the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "csrc/bindings/bindings.h"
#include "csrc/bindings/json.h"
#include "csrc/ops/build_info.h"
#include "csrc/ops/cuda_library.h"
#include "csrc/ops/trust_lengths.h"
#include "csrc/records/run_facts.h"
#include "csrc/versions/registry.h"

namespace py = pybind11;

namespace kvfuse {
namespace {

// A row of the registry; `version` and `version_description` are what records call name and description.
json version_row(const Strategy& version) {
  json row = {{"name", version.name}, {"description", version.description}};
  const json fields = strategy_json(version);
  for (const auto& [key, value] : fields.items())
    if (!key.starts_with("version")) row[key] = value;
  return row;
}

json versions_list() {
  json list = json::array();
  for (const Strategy& version : versions()) list.push_back(version_row(version));
  return list;
}

py::dict build_info_dict() {
  const ops::BuildInfo info = ops::build_info();
  py::dict dict;
  dict["version"] = info.version;
  dict["torch_version"] = info.torch_version;
  dict["compiler"] = info.compiler;
  dict["cuda"] = info.cuda;
  dict["cuda_architectures"] = info.cuda_architectures;
  dict["cuda_loaded"] = info.cuda_loaded;
  dict["available_isas"] = info.available_isas;
  dict["active_isa"] = info.active_isa;
  dict["supported_head_dims"] = info.supported_head_dims;
  dict["cuda_head_dims"] = info.cuda_head_dims;
  return dict;
}

// A Python context manager; may be entered once.
struct TrustLengthsContext {
  std::optional<ops::TrustLengths> trust;
};

}  // namespace
}  // namespace kvfuse

PYBIND11_MODULE(_C, module) {
  module.attr("__version__") = KVFUSE_VERSION;
  kvfuse::bind_errors(module);
  kvfuse::bind_measure(module);
  kvfuse::bind_model(module);
  kvfuse::bind_perplexity(module);
  kvfuse::bind_records(module);
  kvfuse::bind_roofline(module);
  module.def("versions", &kvfuse::versions_list);
  module.def("uncached_baseline", [] { return kvfuse::uncached_baseline().name; });
  module.def("cached_baseline", [] { return kvfuse::cached_baseline().name; });
  module.def("build_info", &kvfuse::build_info_dict);
  module.def("has_cuda_operators", &kvfuse::ops::has_cuda_operators);
  module.def("load_cuda_operators", &kvfuse::ops::load_cuda_operators);
  module.def("lengths_are_trusted", &kvfuse::ops::TrustLengths::active);
  using Context = kvfuse::TrustLengthsContext;
  py::class_<Context>(module, "TrustLengths")
      .def(py::init<>())
      .def("__enter__", [](Context& self) { self.trust.emplace(); })
      .def("__exit__", [](Context& self, const py::args&) { self.trust.reset(); });
}
