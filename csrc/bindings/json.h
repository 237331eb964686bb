// JSON values as Python's: a function that returns json returns dict, list, str, float, int, bool or None.
#pragma once

#include <pybind11/pybind11.h>

#include "csrc/records/record.h"

namespace kvfuse {

pybind11::object to_python(const json& value);

// Throws pybind11::type_error on what JSON has no value for. Numbers that are not finite stay what they are.
json from_python(pybind11::handle value);

}  // namespace kvfuse

namespace pybind11::detail {

template <>
struct type_caster<kvfuse::json> {
  PYBIND11_TYPE_CASTER(kvfuse::json, const_name("object"));

  bool load(handle source, bool) {
    value = kvfuse::from_python(source);
    return true;
  }
  static handle cast(const kvfuse::json& source, return_value_policy, handle) {
    return kvfuse::to_python(source).release();
  }
};

}  // namespace pybind11::detail
