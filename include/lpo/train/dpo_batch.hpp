// SPDX-License-Identifier: MIT
// DpoBatch: the rows of some pairs of a Diffusion-DPO step, on the host: noisy latents, targets, prompts.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <lpo/base/philox.hpp>
#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/diffusion/prediction.hpp>
#include <lpo/train/guided_denoiser.hpp>
#include <lpo/train/latent_pairs.hpp>

namespace lpo::inline LPO_ABI {

/// Rows are n preferred images, then the n rejected ones in the same order.
struct DpoBatch {
  std::vector<float> noisy, target;     ///< [2n, h, w, c]
  std::vector<float> timesteps;         ///< [2n]
  std::vector<index_t> prompts;         ///< [2n]: numbers of pairs, or detail::empty_prompt
  std::vector<std::int32_t> token_ids;  ///< [n, tokens]

  /// Timestep of a pair, and whether it is trained under its own prompt.
  struct Choice {
    int timestep;
    bool prompted;
  };

  /// What latents are noised with. The keys must differ.
  struct Noise {
    RandomKey normal, posterior;
  };

  /// Pairs are given as (preferred, rejected); the first is number `number` of the step, which has one `noise`.
  DpoBatch(const NoiseSchedule& schedule, PredictionType prediction_type, const LatentPairs& data,
           std::span<const LatentPairs::Pair> pairs, std::span<const Choice> choices, index_t number,
           const Noise& noise) {
    const auto n = static_cast<index_t>(pairs.size());
    for (int side = 0; side < 2; ++side)
      for (index_t i = 0; i < n; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const Choice& choice = choices[at];
        add_latents(schedule, prediction_type, data, side == 0 ? pairs[at].first : pairs[at].second, choice.timestep,
                    static_cast<std::size_t>(number + i), side, noise);
        timesteps.push_back(static_cast<float>(choice.timestep));
        prompts.push_back(choice.prompted ? i : detail::empty_prompt);
        const auto* ids = data.token_ids.data() + data.prompt_of(pairs[at]) * data.tokens;
        if (side == 0) token_ids.insert(token_ids.end(), ids, ids + data.tokens);
      }
  }

  index_t pairs() const { return static_cast<index_t>(timesteps.size() / 2); }

 private:
  /// Appends sqrt(abar) x_0 + sqrt(1 - abar) n and what the network should predict for it. Both images of pair `number`
  /// of a step get the same noise n; each draws x_0 from its own posterior. Micro-batches of any size see the same
  /// numbers.
  void add_latents(const NoiseSchedule& schedule, PredictionType prediction_type, const LatentPairs& data,
                   index_t image, int timestep, std::size_t number, int side, const Noise& keys) {
    const auto size = static_cast<std::size_t>(data.latent_size());
    const auto normals = [&](const RandomKey& key, std::size_t row) {
      std::vector<float> values(size);
      philox_fill_normal(key, values.data(), size, row * size);
      return values;
    };
    const auto noise = normals(keys.normal, number);
    std::vector<float> clean(size), deviation(size);
    data.read_posterior(image, clean.data(), deviation.data());
    if (data.has_deviation()) {
      const auto posterior = normals(keys.posterior, 2 * number + static_cast<std::size_t>(side));
      for (std::size_t k = 0; k < size; ++k) clean[k] += deviation[k] * posterior[k];
    }
    const double abar = schedule.alpha_bar(timestep);
    const float signal = static_cast<float>(std::sqrt(abar)), spread = static_cast<float>(std::sqrt(1 - abar));
    for (std::size_t k = 0; k < size; ++k) {
      noisy.push_back(signal * clean[k] + spread * noise[k]);
      switch (prediction_type) {
        case PredictionType::epsilon: target.push_back(noise[k]); break;
        case PredictionType::v_prediction: target.push_back(signal * noise[k] - spread * clean[k]); break;
        default: target.push_back(clean[k]);
      }
    }
  }
};

}  // namespace lpo::inline LPO_ABI
