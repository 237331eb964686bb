#include "csrc/bindings/json.h"

#include <cstdint>
#include <string>

namespace py = pybind11;

namespace kvfuse {

py::object to_python(const json& value) {
  if (value.is_object()) {
    py::dict dict;
    for (const auto& [key, item] : value.items()) dict[py::str(key)] = to_python(item);
    return dict;
  }
  if (value.is_array()) {
    py::list list;
    for (const json& item : value) list.append(to_python(item));
    return list;
  }
  if (value.is_string()) return py::str(value.get_ref<const std::string&>());
  if (value.is_boolean()) return py::bool_(value.get<bool>());
  if (value.is_number_unsigned()) return py::int_(value.get<std::uint64_t>());
  if (value.is_number_integer()) return py::int_(value.get<std::int64_t>());
  if (value.is_number()) return py::float_(value.get<double>());
  return py::none();
}

json from_python(py::handle value) {
  if (value.is_none()) return nullptr;
  if (py::isinstance<py::bool_>(value)) return value.cast<bool>();
  if (py::isinstance<py::int_>(value)) return value.cast<std::int64_t>();
  if (py::isinstance<py::float_>(value)) return value.cast<double>();
  if (py::isinstance<py::str>(value)) return value.cast<std::string>();
  if (py::isinstance<py::dict>(value)) {
    json object = json::object();
    for (const auto& [key, item] : py::reinterpret_borrow<py::dict>(value))
      object[key.cast<std::string>()] = from_python(item);
    return object;
  }
  if (py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value)) {
    json array = json::array();
    for (const py::handle item : py::reinterpret_borrow<py::sequence>(value))
      array.push_back(from_python(item));
    return array;
  }
  throw py::type_error("record: expected dict, list, str, float, int, bool or None, got " +
                       std::string(py::str(py::type::of(value))));
}

}  // namespace kvfuse
