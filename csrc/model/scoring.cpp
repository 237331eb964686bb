#include "csrc/model/scoring.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/log_softmax.h>

#include <algorithm>
#include <bit>

namespace kvfuse {

double negative_log_likelihood(const at::Tensor& logits, const at::Tensor& targets) {
  // Not logsumexp: PyTorch takes its exponentials from MKL's vector functions, whose first call, made by two
  // threads at once, in some runs gave half of the rows a less accurate one (1e-5 of a loss).
  const at::Tensor log_p = at::log_softmax(logits, 2, at::kFloat);
  return -at::gather(log_p, 2, targets.unsqueeze(2)).to(at::kDouble).sum().item<double>();
}

void Divergence::add(const at::Tensor& logits, const at::Tensor& reference, std::int64_t position) {
  const auto index = static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(position + 1)) - 1);
  if (buckets_.size() <= index) buckets_.resize(index + 1);
  Bucket& bucket = buckets_[index];
  // In float64: the divergences of interest are far below the rounding of float32.
  const at::Tensor log_p = at::log_softmax(reference.to(at::kDouble), -1);
  const at::Tensor log_q = at::log_softmax(logits.to(at::kDouble), -1);
  bucket.kl += (log_p.exp() * (log_p - log_q)).sum().item<double>();
  bucket.same += (at::argmax(logits, -1) == at::argmax(reference, -1)).sum().item<std::int64_t>();
  bucket.tokens += logits.size(0);
}

nlohmann::ordered_json Divergence::Bucket::means() const {
  const double count = static_cast<double>(std::max<std::int64_t>(tokens, 1));
  return {{"num_tokens", tokens}, {"mean_kl", kl / count}, {"same_top_1", static_cast<double>(same) / count}};
}

nlohmann::ordered_json Divergence::summary() const {
  Bucket total;
  nlohmann::ordered_json by_position = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    const Bucket& bucket = buckets_[i];
    if (bucket.tokens == 0) continue;
    total.tokens += bucket.tokens;
    total.kl += bucket.kl;
    total.same += bucket.same;
    nlohmann::ordered_json row = {{"first_position", (std::int64_t{1} << i) - 1},
                                  {"last_position", (std::int64_t{2} << i) - 2}};
    row.update(bucket.means());
    by_position.push_back(row);
  }
  nlohmann::ordered_json fields = total.means();
  fields["by_position"] = by_position;
  return fields;
}

}  // namespace kvfuse
