// For callers that know their cache_seqlens: spares CUDA operators the copy to the host.
#pragma once

#include "csrc/ops/export.h"

namespace kvfuse::ops {

// While one lives, the CUDA operators that this thread calls do not look at cache_seqlens: the caller vouches
// for 0 <= cache_seqlens[b] and cache_seqlens[b] + appended tokens <= capacity. Without it each call copies
// the lengths to the host, which waits for the device, except while a CUDA graph is captured. A sequence that
// breaks the promise gets a result of NaN, and nothing of it is written. The CPU always looks: it costs
// nothing.
class KVFUSE_OPS_API TrustLengths {
 public:
  TrustLengths();
  ~TrustLengths();
  TrustLengths(const TrustLengths&) = delete;
  TrustLengths& operator=(const TrustLengths&) = delete;

  // Whether one lives on this thread.
  static bool active();
};

}  // namespace kvfuse::ops
