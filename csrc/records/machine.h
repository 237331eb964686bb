// What a record says about the program and the machine, as JSON.
#pragma once

#include <c10/core/Device.h>

#include "csrc/records/record.h"

namespace kvfuse {

// CPU, GPU (null unless `device` is one), instruction set, threads, load, versions of the program and its
// compiler.
json machine_context(c10::Device device);

}  // namespace kvfuse
