// C++ exceptions as Python's, with the same sentence.
#include <exception>

#include "csrc/bindings/bindings.h"
#include "csrc/model/model_file.h"
#include "csrc/model/out_of_memory.h"
#include "csrc/records/record.h"

namespace py = pybind11;

namespace kvfuse {
namespace {

void translate(std::exception_ptr thrown) {
  if (!thrown) return;
  try {
    std::rethrow_exception(thrown);
  } catch (const c10::OutOfMemoryError& error) {
    py::set_error(py::module_::import("torch").attr("OutOfMemoryError"), error.what_without_backtrace());
  } catch (const c10::IndexError& error) {
    py::set_error(PyExc_IndexError, error.what_without_backtrace());
  } catch (const c10::Error& error) {
    py::set_error(says_out_of_memory(error) ? PyExc_MemoryError : PyExc_RuntimeError,
                  error.what_without_backtrace());
  }
}

}  // namespace

void bind_errors(py::module_& module) {
  py::register_local_exception_translator(&translate);
  py::register_local_exception<ModelFileError>(module, "ModelFileError", PyExc_ValueError);
  py::register_local_exception<ResourceError>(module, "ResourceError", PyExc_OSError);
}

}  // namespace kvfuse
