// SPDX-License-Identifier: MIT
// The two concepts through which preference optimisation sees models: NoisePredictor and StepScorer.
#pragma once

#include <concepts>
#include <span>

#include <lpo/diffusion/noise_predictor.hpp>
#include <lpo/tensor/view.hpp>

namespace lpo::inline LPO_ABI {

/// `s.score(latents, timestep, scores)`: rates K candidates of B prompts at one noise level. latents [k*b, h, w, c],
/// row k*B + b is candidate k of prompt b; `scores` (host memory, same order) has one entry per row, larger is better.
/// The scale matters: a pair's gap is a softmax of its two scores.
template <class Scorer, class T, class Device>
concept StepScorer = requires(Scorer& scorer, View<const T, 4, Device> latents, int timestep, std::span<float> scores) {
  scorer.score(latents, timestep, scores);
};

}  // namespace lpo::inline LPO_ABI
