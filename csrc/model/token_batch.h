// Token ids of several sequences, which may differ in length.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace kvfuse {

struct TokenBatch {
  // Without `lengths` every sequence fills its row. Not explicit: a tensor is such a batch.
  TokenBatch(at::Tensor ids, std::vector<std::int64_t> row_lengths = {})
      : tokens(std::move(ids)), lengths(std::move(row_lengths)) {
    if (lengths.empty() && tokens.dim() == 2)
      lengths.assign(static_cast<std::size_t>(tokens.size(0)), tokens.size(1));
  }

  at::Tensor tokens;  // int64 [batch, T]; behind a shorter sequence, any ids of the vocabulary
  std::vector<std::int64_t> lengths;  // [batch], each from 1 to T

  std::int64_t longest() const { return *std::max_element(lengths.begin(), lengths.end()); }
  bool uniform() const { return *std::min_element(lengths.begin(), lengths.end()) == longest(); }
};

// Throws std::invalid_argument, beginning with `op`, unless `batch` is what TokenBatch says.
inline void check_token_batch(const std::string& op, const TokenBatch& batch) {
  const auto expect = [&](bool holds, const std::string& rule, const std::string& got) {
    if (!holds) throw std::invalid_argument(op + ": expected " + rule + ", got " + got);
  };
  const at::Tensor& tokens = batch.tokens;
  expect(tokens.dim() == 2 && tokens.scalar_type() == at::kLong && tokens.numel() > 0,
         "tokens int64 [batch, T], not empty",
         std::string(c10::toString(tokens.scalar_type())) + " with " + std::to_string(tokens.numel()) +
             " elements");
  expect(static_cast<std::int64_t>(batch.lengths.size()) == tokens.size(0),
         std::to_string(tokens.size(0)) + " lengths, one a sequence", std::to_string(batch.lengths.size()));
  for (const std::int64_t length : batch.lengths)
    expect(length >= 1 && length <= tokens.size(1), "lengths from 1 to " + std::to_string(tokens.size(1)),
           std::to_string(length));
}

}  // namespace kvfuse
