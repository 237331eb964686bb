# Imports the CPU half of the installed PyTorch as the target `torch_cpu_only`.
#
# find_package(Torch) of a CUDA build of PyTorch fails where there is no CUDA toolkit, and links the CUDA libraries
# where there is one. Operators and runner need libtorch_cpu and libc10 alone, which also start faster.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import torch, torch.utils.cpp_extension as e; print(torch.__version__, int(torch.compiled_with_cxx11_abi()), ';'.join(e.library_paths()[:1]), '|'.join(e.include_paths()), torch.version.cuda, sep='\\n')"
  OUTPUT_VARIABLE torch_answer
  ERROR_VARIABLE torch_error
  RESULT_VARIABLE torch_result
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(NOT torch_result EQUAL 0)
  message(FATAL_ERROR "PyTorch was not found by ${Python_EXECUTABLE} (pip install -r requirements.txt, or run "
                      "scripts/bootstrap). It said:\n${torch_error}")
endif()
string(REPLACE "\n" ";" torch_lines "${torch_answer}")
list(GET torch_lines 0 KVFUSE_TORCH_VERSION)
list(GET torch_lines 1 torch_cxx11_abi)
list(GET torch_lines 2 KVFUSE_TORCH_LIB_DIR)
list(GET torch_lines 3 torch_includes)
list(GET torch_lines 4 KVFUSE_TORCH_CUDA_VERSION)  # None: built without CUDA
string(REPLACE "|" ";" torch_includes "${torch_includes}")
message(STATUS "PyTorch ${KVFUSE_TORCH_VERSION} in ${KVFUSE_TORCH_LIB_DIR}")

add_library(torch_cpu_only INTERFACE)
target_include_directories(torch_cpu_only SYSTEM INTERFACE ${torch_includes})
target_compile_definitions(torch_cpu_only INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_cxx11_abi})
target_link_directories(torch_cpu_only INTERFACE ${KVFUSE_TORCH_LIB_DIR})
target_link_libraries(torch_cpu_only INTERFACE torch_cpu c10)
# libtorch_cpu.so of a CUDA build needs CUDA run-time libraries that only its own RPATH finds.
target_link_options(torch_cpu_only INTERFACE -Wl,--allow-shlib-undefined -Wl,--no-as-needed)
