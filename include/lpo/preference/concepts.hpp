// SPDX-License-Identifier: MIT
// The concepts through which preference optimisation sees models: NoisePredictor, StepScorer and TransitionScorer.
#pragma once

#include <concepts>
#include <span>

#include <lpo/diffusion/gaussian_step.hpp>
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

/// The same for scorers that need to know where the candidates have arrived: they are told the step that led there.
template <class Scorer, class T, class Device>
concept TransitionScorer =
    requires(Scorer& scorer, View<const T, 4, Device> latents, const GaussianStep& step, std::span<float> scores) {
      scorer.score(latents, step, scores);
    };

}  // namespace lpo::inline LPO_ABI
