// A calibration of round figures.
#pragma once

#include "csrc/roofline/calibration.h"

namespace kvfuse::roofline {

inline Calibration tiny() {
  return {.machine = "a machine",
          .kind = "cpu",
          .num_threads = 2,
          .time = "2026-01-01T00:00:00Z",
          .read_bytes_per_s = 1e9,
          .elementwise_bytes_per_s = 2e9,
          .pass_overhead_s = 1e-4,
          .products = {{Precision::kFp32, 1, 100, 100, 1e-4},
                       {Precision::kFp32, 16, 100, 100, 4e-4},
                       {Precision::kFp32, 256, 100, 100, 64e-4},
                       {Precision::kFp32, 1, 400, 400, 8e-4}},
          .step_products = {},
          .attentions = {{.kv = Precision::kFp32,
                          .n_head = 4,
                          .n_kv_head = 4,
                          .head_dim = 25,
                          .kv_len = 100,
                          .seconds = 1e-4},
                         {.kv = Precision::kFp32,
                          .n_head = 4,
                          .n_kv_head = 4,
                          .head_dim = 25,
                          .kv_len = 400,
                          .seconds = 8e-4}}};
}

}  // namespace kvfuse::roofline
