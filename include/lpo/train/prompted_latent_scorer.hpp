// SPDX-License-Identifier: MIT
// PromptedLatentScorer: an LRM with its text encoder as the Scorer of a RolloutTrainer.
#pragma once

#include <cstdint>
#include <span>

#include <lpo/train/latent_scorer.hpp>

namespace lpo::inline LPO_ABI {

/// A LatentScorer that encodes the prompts of a roll-out itself, once, and keeps them.
template <class Lrm, class TextEncoder>
class PromptedLatentScorer {
 public:
  using T = typename Lrm::value_type;
  using Device = typename Lrm::device;

  /// `max_rows` as in LatentScorer; `half_scores` rounds scores to half.
  PromptedLatentScorer(Tape<Device>& tape, Lrm& lrm, TextEncoder& text, index_t max_rows, bool half_scores = false)
      : tape_(tape), text_(text), scorer_(tape, lrm, max_rows), half_scores_(half_scores) {}

  /// `ids`: n prompts for the reward model's text encoder. What the policy reads of them is not needed here.
  template <class PolicyPrompts>
  void set_prompts(const PolicyPrompts&, std::span<const std::int32_t> ids, index_t n) {
    prompts_ = encode_prompts<T>(tape_, text_, ids, n);
    scorer_.set_prompts(prompts_);
  }

  void score(View<const compute_t<T>, 4, Device> latents, int timestep, std::span<float> scores) {
    scorer_.score(latents, timestep, scores);
    if (half_scores_)
      for (float& score : scores) score = static_cast<float>(half(score));
  }

 private:
  Tape<Device>& tape_;
  TextEncoder& text_;
  LatentScorer<Lrm> scorer_;
  PromptBatch<T, Device> prompts_;
  bool half_scores_;
};

}  // namespace lpo::inline LPO_ABI
