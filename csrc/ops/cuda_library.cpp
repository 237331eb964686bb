#include "csrc/ops/cuda_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <stdexcept>

#include "csrc/ops/cuda_services.h"

namespace kvfuse::ops {
namespace {

// Any object of this library, by whose address the loader knows the file.
const char own_address = 0;

std::filesystem::path own_folder() {
  Dl_info info;
  if (dladdr(&own_address, &info) == 0 || info.dli_fname == nullptr) return {};
  return std::filesystem::absolute(info.dli_fname).parent_path();
}

// The library stays loaded.
void* open_cuda_library() {
  const std::string name = kCudaLibrary;
  if (cuda_architectures().empty())
    throw std::runtime_error("kvfuse was built without CUDA operators (configure with KVFUSE_CUDA=on)");
  if (!has_cuda_operators())
    throw std::runtime_error("expected " + name + " in " + own_folder().string() +
                             ", beside libkvfuse_ops.so, found none (build kvfuse again)");
  void* library = dlopen((own_folder() / kCudaLibrary).c_str(), RTLD_NOW | RTLD_NODELETE);
  if (library == nullptr)
    throw std::runtime_error(name + " does not load (" + dlerror() +
                             "); build kvfuse again with this PyTorch");
  return library;
}

}  // namespace

std::string cuda_architectures() { return KVFUSE_CUDA_TARGETS; }

bool has_cuda_operators() {
  std::error_code unreadable;
  return !cuda_architectures().empty() && std::filesystem::exists(own_folder() / kCudaLibrary, unreadable);
}

bool cuda_operators_loaded() {
  void* library = dlopen((own_folder() / kCudaLibrary).c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return false;
  dlclose(library);  // RTLD_NOLOAD has counted one user more
  return true;
}

void load_cuda_operators() { open_cuda_library(); }

const CudaServices& cuda_services() {
  static const CudaServices& services = []() -> const CudaServices& {
    void* found = dlsym(open_cuda_library(), kCudaServicesSymbol);
    if (found == nullptr)
      throw std::runtime_error(std::string(kCudaLibrary) + " lacks " + kCudaServicesSymbol +
                               "; build kvfuse again");
    return reinterpret_cast<const CudaServices& (*)()>(found)();
  }();
  return services;
}

}  // namespace kvfuse::ops
