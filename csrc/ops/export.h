// Marks what libkvfuse_ops.so offers to the programs that link it; everything else stays hidden.
#pragma once

#define KVFUSE_OPS_API __attribute__((visibility("default")))
