// Weights in the order in which the CPU's products of several rows read them.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "csrc/model/weights.h"

namespace kvfuse {

// Whether weights are packed: on the CPU, but for double, which has no kernels, bfloat16 where the machine
// multiplies it, as oneDNN does twice as fast with many rows, and int8 codes where it doesn't multiply bytes.
bool packs(at::ScalarType dtype, at::Device device);

// Whether pack_weights does anything: linears that are packed and still lie in rows.
bool suits_packing(const Gpt2Weights& weights);

// Packs the linears and the token embedding (the panels of WeightFormat) of all models that suit it, each
// that is packed, in their own memory, which several of the models may share, and which nothing else may use.
void pack_weights(std::span<Gpt2Weights* const> models);

// Packed weights in rows again, in memory of their own.
void unpack_weights(Gpt2Weights& weights);

// Rows `indices` (int64 in [0, out), of any shape) of a packed weight [out, in]: [..., in].
at::Tensor packed_rows(const at::Tensor& weight, const at::Tensor& indices);

}  // namespace kvfuse
