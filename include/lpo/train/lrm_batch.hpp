// SPDX-License-Identifier: MIT
// LrmBatch: the rows of one step of a reward model's training, on the host: prompts, noisy latents, pairs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <lpo/base/philox.hpp>
#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/train/latent_pairs.hpp>

namespace lpo::inline LPO_ABI {

/// Rows of prompts and images are in the order in which units (pairs, or prompts with all their pairs) were added.
struct LrmBatch {
  std::vector<std::int32_t> token_ids;                      ///< [prompts, tokens]
  std::vector<index_t> images;                              ///< numbers in the data set [images]
  std::vector<std::int32_t> prompt_of_image;                ///< rows of prompts [images]
  std::vector<float> timesteps;                             ///< [images]
  std::vector<std::int32_t> first, second, prompt_of_pair;  ///< rows of images and prompts [pairs]
  std::vector<PreferenceLabel> labels;                      ///< [pairs]
  std::vector<float> latents;                               ///< noisy [images, h, w, c], after add_noise
  index_t prompts = 0;

  /// Where a unit's rows end.
  struct Unit {
    std::size_t prompts, images, pairs;
  };
  std::vector<Unit> units;

  /// Adds pairs of one prompt under one timestep; an image that occurs in several of them gets one row.
  void add_unit(const LatentPairs& data, const std::vector<index_t>& pairs, int timestep) {
    add_prompt(data, data.prompt_of(data.pairs[static_cast<std::size_t>(pairs.front())]));
    const auto begin = static_cast<std::ptrdiff_t>(images.size());
    const auto row_of = [&](index_t image) {
      const auto found = std::find(images.begin() + begin, images.end(), image);
      const auto row = static_cast<std::int32_t>(found - images.begin());
      if (found == images.end()) add_image(image, timestep);
      return row;
    };
    for (const index_t i : pairs) {
      const auto& pair = data.pairs[static_cast<std::size_t>(i)];
      first.push_back(row_of(pair.first));
      second.push_back(row_of(pair.second));
      prompt_of_pair.push_back(static_cast<std::int32_t>(prompts - 1));
      labels.push_back(data.labels[static_cast<std::size_t>(i)]);
    }
    close_unit();
  }

  /// Adds one image as a pair of two timesteps: preferred at the first.
  void add_neighbours(const LatentPairs& data, index_t image, int timestep, int noisier, float num_examples) {
    add_prompt(data, data.prompt_of_image[static_cast<std::size_t>(image)]);
    first.push_back(static_cast<std::int32_t>(images.size()));
    add_image(image, timestep);
    second.push_back(static_cast<std::int32_t>(images.size()));
    add_image(image, noisier);
    prompt_of_pair.push_back(static_cast<std::int32_t>(prompts - 1));
    labels.push_back({.label_0 = 1, .label_1 = 0, .num_examples = num_examples, .auxiliary = true});
    close_unit();
  }

  /// Adds an image alone, to be scored under its prompt.
  void add_single(const LatentPairs& data, index_t image, int timestep) {
    add_prompt(data, data.prompt_of_image[static_cast<std::size_t>(image)]);
    add_image(image, timestep);
    close_unit();
  }

  /// What latents are noised with. The keys must differ.
  struct Noise {
    RandomKey normal, posterior, offset;
    bool shared = false;      ///< all images of a prompt get the noise of its first one
    float offset_scale = 0;  ///< n += this times one normal number for each image and channel
  };

  /// Draws the clean latents from their posteriors and noises them: sqrt(abar) x_0 + sqrt(1 - abar) n, in float.
  /// `first_row` is where the images stand in the batch of which this is a part: parts get the numbers that they have in
  /// the whole.
  void add_noise(const NoiseSchedule& schedule, const LatentPairs& data, const Noise& noise, std::size_t first_row = 0) {
    const auto size = static_cast<std::size_t>(data.latent_size()), channels = static_cast<std::size_t>(data.channels);
    const bool sampled = data.has_deviation();
    std::vector<float> drawn(images.size() * size), draws(sampled ? drawn.size() : 0), clean(size), deviation(size);
    philox_fill_normal(noise.normal, drawn.data(), drawn.size(), first_row * size);
    philox_fill_normal(noise.posterior, draws.data(), draws.size(), first_row * size);
    if (noise.offset_scale != 0) {
      std::vector<float> offsets(images.size() * channels);
      philox_fill_normal(noise.offset, offsets.data(), offsets.size(), first_row * channels);
      for (std::size_t i = 0; i < drawn.size(); ++i)
        drawn[i] += noise.offset_scale * offsets[i / size * channels + i % channels];
    }
    latents.resize(drawn.size());
    std::size_t source = 0;
    for (std::size_t row = 0; row < images.size(); ++row) {
      if (!noise.shared || row == 0 || prompt_of_image[row] != prompt_of_image[row - 1]) source = row;
      const double abar = schedule.alpha_bar(static_cast<int>(timesteps[row]));
      const float signal = static_cast<float>(std::sqrt(abar)), spread = static_cast<float>(std::sqrt(1 - abar));
      data.read_posterior(images[row], clean.data(), deviation.data());
      for (std::size_t k = 0; k < size; ++k) {
        if (sampled) clean[k] += deviation[k] * draws[row * size + k];
        latents[row * size + k] = signal * clean[k] + spread * drawn[source * size + k];
      }
    }
  }

  /// Units [begin, end), at least one, as a batch of their own, with the latents that they have here, if any.
  LrmBatch part(std::size_t begin, std::size_t end) const {
    const Unit from = begin == 0 ? Unit{0, 0, 0} : units[begin - 1], to = units[end - 1];
    const auto slice = [](const auto& values, std::size_t low, std::size_t high) {
      return std::remove_cvref_t<decltype(values)>(values.begin() + static_cast<std::ptrdiff_t>(low),
                                                   values.begin() + static_cast<std::ptrdiff_t>(high));
    };
    const auto shifted = [](std::vector<std::int32_t> rows, std::size_t by) {
      for (auto& row : rows) row -= static_cast<std::int32_t>(by);
      return rows;
    };
    const std::size_t tokens = token_ids.size() / static_cast<std::size_t>(prompts),
                      size = latents.size() / images.size();
    LrmBatch out;
    out.prompts = static_cast<index_t>(to.prompts - from.prompts);
    out.token_ids = slice(token_ids, from.prompts * tokens, to.prompts * tokens);
    out.images = slice(images, from.images, to.images);
    out.prompt_of_image = shifted(slice(prompt_of_image, from.images, to.images), from.prompts);
    out.timesteps = slice(timesteps, from.images, to.images);
    out.first = shifted(slice(first, from.pairs, to.pairs), from.images);
    out.second = shifted(slice(second, from.pairs, to.pairs), from.images);
    out.prompt_of_pair = shifted(slice(prompt_of_pair, from.pairs, to.pairs), from.prompts);
    out.labels = slice(labels, from.pairs, to.pairs);
    out.latents = slice(latents, from.images * size, to.images * size);
    for (std::size_t i = begin; i < end; ++i)
      out.units.push_back(
          {units[i].prompts - from.prompts, units[i].images - from.images, units[i].pairs - from.pairs});
    return out;
  }

 private:
  void add_prompt(const LatentPairs& data, index_t prompt) {
    const auto* ids = data.token_ids.data() + prompt * data.tokens;
    token_ids.insert(token_ids.end(), ids, ids + data.tokens);
    ++prompts;
  }

  /// Of the newest prompt.
  void add_image(index_t image, int timestep) {
    images.push_back(image);
    prompt_of_image.push_back(static_cast<std::int32_t>(prompts - 1));
    timesteps.push_back(static_cast<float>(timestep));
  }

  void close_unit() { units.push_back({static_cast<std::size_t>(prompts), images.size(), labels.size()}); }
};

}  // namespace lpo::inline LPO_ABI
