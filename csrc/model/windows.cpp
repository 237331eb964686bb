#include "csrc/model/windows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace kvfuse {
namespace {

// Where documents begin, and the end of the last: a separator begins one.
std::vector<std::int64_t> borders(const std::uint16_t* tokens, std::int64_t total,
                                  std::optional<std::int64_t> separator) {
  std::vector<std::int64_t> all = {0};
  for (std::int64_t i = 1; separator && i < total; ++i)
    if (tokens[i] == *separator) all.push_back(i);
  all.push_back(total);
  return all;
}

// Windows side by side, the longest first, so that those still going on are always the first ones.
TokenBatch side_by_side(std::vector<at::Tensor> windows) {
  std::stable_sort(windows.begin(), windows.end(),
                   [](const at::Tensor& a, const at::Tensor& b) { return a.size(0) > b.size(0); });
  const auto count = static_cast<std::int64_t>(windows.size());
  TokenBatch batch(at::zeros({count, windows.front().size(0)}, windows.front().options()));
  for (std::size_t i = 0; i < windows.size(); ++i) {
    batch.lengths[i] = windows[i].size(0);
    batch.tokens.select(0, static_cast<std::int64_t>(i)).narrow(0, 0, batch.lengths[i]).copy_(windows[i]);
  }
  return batch;
}

void check(const CutOptions& options) {
  const auto expect = [](const char* option, std::int64_t least, std::int64_t got) {
    if (got < least)
      throw std::invalid_argument("cut: expected " + std::string(option) + " >= " + std::to_string(least) +
                                  ", got " + std::to_string(got));
  };
  expect("block_size", 1, options.block_size);
  expect("batch_size", 1, options.batch_size);
  expect("max_tokens", 1, options.max_tokens.value_or(1));
}

}  // namespace

Windows cut(std::span<const std::uint16_t> tokens, const CutOptions& options) {
  check(options);
  const std::int64_t total = std::min(static_cast<std::int64_t>(tokens.size()),
                                      options.max_tokens.value_or(std::numeric_limits<std::int64_t>::max()));
  at::Tensor ids = at::empty({total}, at::TensorOptions().dtype(at::kLong));
  std::copy_n(tokens.begin(), total, ids.mutable_data_ptr<std::int64_t>());
  const bool overflows = options.overflow.kind != Overflow::kError;
  // A whole document goes through an overflowing window; a lone one in as many parts as run side by side.
  const std::int64_t most = !overflows ? options.block_size
                            : options.document_separator
                                ? total
                                : std::max<std::int64_t>(2, total / options.batch_size);
  const std::vector<std::int64_t> documents = borders(tokens.data(), total, options.document_separator);
  std::vector<at::Tensor> pieces;
  std::int64_t longest = 1;
  for (std::size_t i = 0; i + 1 < documents.size(); ++i)
    for (std::int64_t first = documents[i]; first < documents[i + 1]; first += most) {
      pieces.push_back(ids.narrow(0, first, std::min(most, documents[i + 1] - first)));
      longest = std::max(longest, pieces.back().size(0));
      if (pieces.back().size(0) < 2) pieces.pop_back();  // nothing to predict
    }
  Windows windows;
  windows.window = std::min(options.block_size, longest);
  windows.stride =
      overflows && longest > windows.window ? windows.window + 1 - options.overflow.keep : windows.window;
  for (std::size_t first = 0; first < pieces.size(); first += static_cast<std::size_t>(options.batch_size)) {
    const std::size_t end = std::min(pieces.size(), first + static_cast<std::size_t>(options.batch_size));
    windows.batches.push_back(side_by_side({pieces.begin() + static_cast<std::ptrdiff_t>(first),
                                            pieces.begin() + static_cast<std::ptrdiff_t>(end)}));
    for (const std::int64_t length : windows.batches.back().lengths) {
      ++windows.count;
      windows.predicted += length - 1;
    }
  }
  return windows;
}

TextSize scored_text(const Windows& windows, const Decode& decode) {
  TextSize size;
  for (const TokenBatch& batch : windows.batches)
    for (std::size_t i = 0; i < batch.lengths.size(); ++i) {
      const auto* first = batch.tokens[static_cast<std::int64_t>(i)].const_data_ptr<std::int64_t>();
      const std::string text = decode(std::vector<std::uint16_t>(first + 1, first + batch.lengths[i]));
      size.bytes += static_cast<std::int64_t>(text.size());
      bool inside = false;
      for (const char c : text) {
        const bool space = c == ' ' || (c >= '\t' && c <= '\r');
        if (!space && !inside) ++size.words;
        inside = !space;
      }
    }
  return size;
}

}  // namespace kvfuse
