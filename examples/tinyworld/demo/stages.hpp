// SPDX-License-Identifier: MIT
// The stages of the demo, in the order in which they run.
#pragma once

#include <lpo/train/latent_pairs.hpp>

#include "../report_data.hpp"
#include "studio.hpp"

namespace demo {

/// Pictures of one set of captions, several each, and what the scorer finds in them.
struct MeasuredPictures {
  std::vector<std::string> captions;
  lpo::Tensor<float, 4> latents;  ///< row i * copies + k: caption i under sampler setting k
  std::vector<tw::Measurement> measured;
};

/// Pictures of one set of captions, their rated pairs, and how the raters did.
struct RatedPairs {
  lpo::LatentPairs latents;
  index_t rated = 0;
  index_t decided = 0, agreed = 0;  ///< ratings that are no ties; those that prefer the picture with the higher score
};

/// Four pictures per caption by the base model, each under another sampler setting. They are kept in the output folder for
/// --resume.
MeasuredPictures draw_pictures(Studio& studio, const Options& o, tw::Split split);

/// All six pairs of every caption's pictures, labelled by the raters. Training pairs go through MPCF; held-out pairs are kept
/// unless they are ties.
RatedPairs rate(const Studio& studio, const Options& o, const MeasuredPictures& pictures, tw::Split split);

/// Both.
RatedPairs rate_pairs(Studio& studio, const Options& o, tw::Split split);

/// Trains the latent reward model on the rated pairs and measures it on the held-out ones.
void train_reward_model(Studio& studio, const Options& o, tw::RewardModel& reward, const RatedPairs& train, const RatedPairs& held_out,
                        tw::DemoReport& report);

/// LPO of the generator's LoRA with the reward model.
void align(Studio& studio, const Options& o, tw::RewardModel& reward, tw::DemoReport& report);

/// Pictures of captions never trained on, several each, from the same noise under the base and the aligned model.
void evaluate_model(Studio& studio, const Options& o, tw::DemoReport& report);

}  // namespace demo
