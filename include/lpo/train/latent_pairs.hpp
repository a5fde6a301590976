// SPDX-License-Identifier: MIT
// LatentPairs: preference pairs of images that are already encoded, and the batches a trainer draws from them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <lpo/base/philox.hpp>
#include <lpo/reward/loss.hpp>

namespace lpo::inline LPO_ABI {

/// Posteriors that lie elsewhere, in files say: `read` writes latent_size() means and, if the set has them, deviations of
/// an image.
struct LatentSource {
  index_t images = 0;
  bool deviations = false;
  std::function<void(index_t image, float* mean, float* deviation)> read;
};

/// Images of a data set as latents, each with its prompt, and labelled pairs of images of one prompt. An image may be in
/// several pairs and is stored once.
struct LatentPairs {
  struct Pair {
    index_t first = 0, second = 0;  ///< images
  };

  index_t height = 0, width = 0, channels = 0, tokens = 0;
  std::vector<float> mean;               ///< posterior means [images, height, width, channels], scaled latents
  std::vector<float> deviation;          ///< the same extents, or empty: the mean is the latent
  std::shared_ptr<const LatentSource> source;  ///< instead of mean and deviation
  std::vector<std::int32_t> token_ids;   ///< [prompts, tokens]
  std::vector<index_t> prompt_of_image;  ///< [images]
  std::vector<Pair> pairs;               ///< [pairs]
  std::vector<PreferenceLabel> labels;   ///< [pairs]

  index_t size() const { return static_cast<index_t>(labels.size()); }
  index_t images() const { return static_cast<index_t>(prompt_of_image.size()); }
  index_t prompts() const { return tokens == 0 ? 0 : static_cast<index_t>(token_ids.size()) / tokens; }
  index_t latent_size() const { return height * width * channels; }
  index_t prompt_of(const Pair& pair) const { return prompt_of_image[static_cast<std::size_t>(pair.first)]; }

  bool has_deviation() const { return source ? source->deviations : !deviation.empty(); }

  /// Mean and, where has_deviation(), deviation of an image, latent_size() numbers each.
  void read_posterior(index_t image, float* to_mean, float* to_deviation) const {
    if (source) return source->read(image, to_mean, to_deviation);
    const index_t begin = image * latent_size();
    std::copy_n(mean.data() + begin, latent_size(), to_mean);
    if (!deviation.empty()) std::copy_n(deviation.data() + begin, latent_size(), to_deviation);
  }

  /// Adds the token ids of a prompt; returns its number.
  index_t add_prompt(std::span<const std::int32_t> ids) {
    token_ids.insert(token_ids.end(), ids.begin(), ids.end());
    return prompts() - 1;
  }

  /// Adds an image of `prompt` from latent_size() numbers (and as many deviations, or null); returns its number.
  index_t add_image(index_t prompt, const float* image_mean, const float* image_deviation = nullptr) {
    mean.insert(mean.end(), image_mean, image_mean + latent_size());
    if (image_deviation != nullptr) deviation.insert(deviation.end(), image_deviation, image_deviation + latent_size());
    prompt_of_image.push_back(prompt);
    return images() - 1;
  }

  void add_pair(index_t first, index_t second, const PreferenceLabel& label) {
    pairs.push_back({first, second});
    labels.push_back(label);
  }

  /// Throws when the buffers do not belong together or a pair is not of two images of one prompt.
  void check() const {
    const auto values = static_cast<std::size_t>(source ? 0 : images() * latent_size());
    if (source && source->images != images())
      throw ShapeError(message("[LatentPairs] ", images(), " images, but their source has ", source->images));
    if (mean.size() != values || (!deviation.empty() && deviation.size() != values) ||
        token_ids.size() != static_cast<std::size_t>(prompts() * tokens) || pairs.size() != labels.size())
      throw ShapeError(message("[LatentPairs] ", images(), " images of latents ", height, " x ", width, " x ", channels, " and prompts of ",
                               tokens, " tokens do not fit the buffers: ", static_cast<index_t>(mean.size()), " means, ",
                               static_cast<index_t>(deviation.size()), " deviations, ", static_cast<index_t>(token_ids.size()),
                               " token ids, ", static_cast<index_t>(pairs.size()), " pairs, ", size(), " labels"));
    for (const index_t prompt : prompt_of_image)
      if (prompt < 0 || prompt >= prompts())
        throw ValueError(message("[LatentPairs] an image is of prompt ", prompt, ", but there are ", prompts()));
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      const auto [first, second] = pairs[i];
      if (first < 0 || second < 0 || first >= images() || second >= images())
        throw ValueError(message("[LatentPairs] pair ", static_cast<index_t>(i), " is of images ", first, " and ", second,
                                 ", but there are ", images()));
      if (prompt_of({first, second}) != prompt_of({second, first}))
        throw ValueError(message("[LatentPairs] pair ", static_cast<index_t>(i), " compares images of two prompts"));
    }
  }
};

/// Moves the last pairs, at least `count` of them and whole prompts, into a set of their own, which shares the images.
/// Throws when nothing would be left.
inline LatentPairs hold_out_pairs(LatentPairs& data, index_t count) {
  std::vector<index_t> of_prompt(static_cast<std::size_t>(data.prompts()), 0);
  std::vector<bool> held(of_prompt.size(), false);
  const auto prompt_of = [&](std::size_t pair) { return static_cast<std::size_t>(data.prompt_of(data.pairs[pair])); };
  for (std::size_t i = 0; i < data.pairs.size(); ++i) ++of_prompt[prompt_of(i)];
  index_t taken = 0;
  for (std::size_t i = data.pairs.size(); i-- > 0 && taken < count;) {
    if (held[prompt_of(i)]) continue;
    held[prompt_of(i)] = true;
    taken += of_prompt[prompt_of(i)];
  }
  if (taken >= data.size())
    throw ValueError(message("[hold_out_pairs] holding out ", count, " of ", data.size(),
                             " pairs leaves none to train on: prompts are held out whole, with all of their pairs, and there ",
                             of_prompt.size() == 1 ? "is 1" : message("are ", of_prompt.size()),
                             "; hold out fewer, or give pairs to validate on"));
  LatentPairs rest = data, out = data;
  rest.pairs.clear(), rest.labels.clear(), out.pairs.clear(), out.labels.clear();
  for (std::size_t i = 0; i < data.pairs.size(); ++i) {
    auto& part = held[prompt_of(i)] ? out : rest;
    part.add_pair(data.pairs[i].first, data.pairs[i].second, data.labels[i]);
  }
  data = std::move(rest);
  return out;
}

/// What one entry of a training batch is.
enum class BatchUnit {
  pair,   ///< one pair, with a timestep of its own, as in arXiv 2502.01051
  prompt  ///< all pairs of a prompt under one timestep: an image in several pairs is run once
};

/// The pairs of each entry, as numbers into `pairs`.
inline std::vector<std::vector<index_t>> batch_units(const LatentPairs& data, BatchUnit unit) {
  std::vector<std::vector<index_t>> units(static_cast<std::size_t>(unit == BatchUnit::pair ? data.size() : data.prompts()));
  for (index_t i = 0; i < data.size(); ++i)
    units[static_cast<std::size_t>(unit == BatchUnit::pair ? i : data.prompt_of(data.pairs[static_cast<std::size_t>(i)]))].push_back(i);
  std::erase_if(units, [](const auto& pairs) { return pairs.empty(); });
  return units;
}

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
