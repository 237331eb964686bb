#include "csrc/ops/trust_lengths.h"

namespace kvfuse::ops {
namespace {

thread_local int depth = 0;

}  // namespace

TrustLengths::TrustLengths() { ++depth; }
TrustLengths::~TrustLengths() { --depth; }
bool TrustLengths::active() { return depth > 0; }

}  // namespace kvfuse::ops
