# Decides by KVFUSE_CUDA whether the CUDA operators are built. If so, sets KVFUSE_HAS_CUDA, enables the language and adds
# the target `torch_cuda_only`; if not, says why. Needs TorchCPU.
#
# A toolkit is enough, no GPU is asked for: CMake's and PyTorch's detection of architectures is not used, since without a
# GPU they choose what nvcc may not even know.
set(KVFUSE_CUDA_ARCHITECTURES "80-real;86-real;89-real;90" CACHE STRING
    "What the CUDA operators are compiled for; the last without -real, for GPUs to come")
find_program(KVFUSE_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin PATHS /usr/local/cuda/bin
             DOC "nvcc of the CUDA toolkit")
mark_as_advanced(KVFUSE_NVCC)

# Sets `why` to what is missing, with the remedy, or to nothing.
function(find_cuda_obstacle why)
  set(${why} "" PARENT_SCOPE)
  if(NOT KVFUSE_NVCC)
    set(${why} "no CUDA toolkit was found: nvcc is neither on PATH nor in /usr/local/cuda/bin (install the toolkit or \
set KVFUSE_NVCC to its nvcc)" PARENT_SCOPE)
    return()
  endif()
  if(KVFUSE_TORCH_CUDA_VERSION STREQUAL "None")
    set(${why} "PyTorch ${KVFUSE_TORCH_VERSION} was built without CUDA (install the PyTorch of requirements.txt from \
PyPI)" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${KVFUSE_NVCC} --version OUTPUT_VARIABLE answer ERROR_VARIABLE answer)
  if(NOT answer MATCHES "release ([0-9]+)(\\.[0-9]+)")
    set(${why} "${KVFUSE_NVCC} --version names no release (reinstall the CUDA toolkit or set KVFUSE_NVCC)" PARENT_SCOPE)
    return()
  endif()
  set(found_major ${CMAKE_MATCH_1})
  set(found ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
  string(REGEX MATCH "^[0-9]+" wanted "${KVFUSE_TORCH_CUDA_VERSION}")
  if(NOT found_major EQUAL wanted)
    set(${why} "expected a toolkit of CUDA ${wanted}, that of PyTorch ${KVFUSE_TORCH_VERSION}, got ${found} in \
${KVFUSE_NVCC} (install CUDA ${wanted} or set KVFUSE_NVCC to its nvcc)" PARENT_SCOPE)
  endif()
endfunction()

find_cuda_obstacle(cuda_obstacle)
if(cuda_obstacle STREQUAL "")
  set(KVFUSE_HAS_CUDA ON)
elseif(KVFUSE_CUDA STREQUAL "on")
  message(FATAL_ERROR "KVFUSE_CUDA=on: ${cuda_obstacle}; or configure with KVFUSE_CUDA=auto or off")
else()
  set(KVFUSE_HAS_CUDA OFF)
  message(STATUS "CUDA operators: not built: ${cuda_obstacle}")
  return()
endif()

set(CMAKE_CUDA_COMPILER ${KVFUSE_NVCC})
set(CMAKE_CUDA_ARCHITECTURES ${KVFUSE_CUDA_ARCHITECTURES})
if(NOT CMAKE_CUDA_HOST_COMPILER)
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
endif()
if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)  # one runtime in the process, that of PyTorch
find_package(CUDAToolkit REQUIRED)

# For people: "80, 86, 89, 90+PTX".
list(TRANSFORM KVFUSE_CUDA_ARCHITECTURES REPLACE "^([0-9]+[a-z]?)$" "\\1+PTX" OUTPUT_VARIABLE KVFUSE_CUDA_TARGETS)
list(TRANSFORM KVFUSE_CUDA_TARGETS REPLACE "-real$" "")
list(TRANSFORM KVFUSE_CUDA_TARGETS REPLACE "-virtual$" " PTX")
list(JOIN KVFUSE_CUDA_TARGETS ", " KVFUSE_CUDA_TARGETS)
message(STATUS "CUDA operators: built by nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${KVFUSE_CUDA_TARGETS}")

add_library(torch_cuda_only INTERFACE)
target_link_libraries(torch_cuda_only INTERFACE torch_cpu_only torch_cuda c10_cuda CUDA::cudart)
