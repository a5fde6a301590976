// SPDX-License-Identifier: MIT
// LatentPairs: preference pairs whose images are already encoded, and the batches a trainer draws from them.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include <lpo/base/philox.hpp>
#include <lpo/reward/loss.hpp>

namespace lpo::inline LPO_ABI {

/// Posterior means (and deviations) of both images of every pair, token ids of the prompt, labels.
struct LatentPairs {
  index_t height = 0, width = 0, channels = 0, tokens = 0;
  std::vector<float> mean;              ///< [pairs, 2, height, width, channels], scaled latents
  std::vector<float> deviation;         ///< the same extents, or empty: the mean is the latent
  std::vector<std::int32_t> token_ids;  ///< [pairs, tokens]
  std::vector<PreferenceLabel> labels;  ///< [pairs]

  index_t size() const { return static_cast<index_t>(labels.size()); }
  index_t latent_size() const { return height * width * channels; }

  /// Throws when the buffers do not belong together.
  void check() const {
    const auto pairs = static_cast<std::size_t>(size());
    if (mean.size() != pairs * 2 * static_cast<std::size_t>(latent_size()) || (!deviation.empty() && deviation.size() != mean.size()) ||
        token_ids.size() != pairs * static_cast<std::size_t>(tokens))
      throw ShapeError(message("[LatentPairs] ", size(), " pairs of latents ", height, " x ", width, " x ", channels, " and ", tokens,
                               " tokens do not fit the buffers: ", static_cast<index_t>(mean.size()), " means, ",
                               static_cast<index_t>(deviation.size()), " deviations, ", static_cast<index_t>(token_ids.size()), " token ids"));
  }
};

/// Which examples step j uses: consecutive slices of one random order per epoch. A function of (seed, step) alone, so a
/// resumed run sees the same batches.
class BatchOrder {
 public:
  BatchOrder(std::uint64_t seed, std::uint32_t operation, index_t count, index_t batch)
      : seed_(seed), operation_(operation), count_(count), batch_(batch) {
    if (count < 1 || batch < 1) throw ValueError(message("[BatchOrder] ", count, " examples cannot make batches of ", batch));
  }

  std::vector<index_t> at(index_t step) {
    std::vector<index_t> picked;
    for (index_t i = 0; i < batch_; ++i) {
      const index_t position = step * batch_ + i;
      load_epoch(position / count_);
      picked.push_back(order_[static_cast<std::size_t>(position % count_)]);
    }
    return picked;
  }

 private:
  void load_epoch(index_t epoch) {
    if (epoch == epoch_) return;
    epoch_ = epoch;
    order_.resize(static_cast<std::size_t>(count_));
    std::iota(order_.begin(), order_.end(), index_t{0});
    RandomStream random(seed_, operation_, static_cast<std::uint32_t>(epoch));
    random.shuffle(order_);
  }

  std::uint64_t seed_;
  std::uint32_t operation_;
  index_t count_, batch_;
  index_t epoch_ = -1;
  std::vector<index_t> order_;
};

}  // namespace lpo::inline LPO_ABI
