// kvfuse._C: what Python needs to know of the C++ side besides the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "csrc/ops/build_info.h"
#include "csrc/ops/cuda_library.h"
#include "csrc/ops/trust_lengths.h"
#include "csrc/versions/registry.h"

namespace py = pybind11;

namespace kvfuse {
namespace {

const char* dtype_text(KvCacheDtype dtype) { return dtype == KvCacheDtype::kInt8 ? "int8" : "model"; }

py::list versions_list() {
  py::list list;
  for (const Strategy& version : versions()) {
    py::dict row;
    row["name"] = version.name;
    row["description"] = version.description;
    row["use_cache"] = version.use_cache;
    row["kv_cache_dtype"] = dtype_text(version.kv_cache_dtype);
    row["sharing_group"] = version.sharing_group;
    row["q_alignment"] = version.q_alignment != QAlignment::kNone;
    row["q_alignment_method"] = q_alignment_name(version.q_alignment);
    row["kv_cache_quant"] = version.kv_cache_dtype != KvCacheDtype::kModel;
    row["cross_layer_sharing"] = version.sharing_group > 1;
    list.append(row);
  }
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
  module.def("versions", &kvfuse::versions_list);
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
