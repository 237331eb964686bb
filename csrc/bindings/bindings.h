// The parts that kvfuse._C is put together from.
#pragma once

#include <pybind11/pybind11.h>

namespace kvfuse {

void bind_errors(pybind11::module_& module);
void bind_measure(pybind11::module_& module);
void bind_model(pybind11::module_& module);
void bind_perplexity(pybind11::module_& module);
void bind_records(pybind11::module_& module);
void bind_roofline(pybind11::module_& module);

}  // namespace kvfuse
