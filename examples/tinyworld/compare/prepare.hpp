// SPDX-License-Identifier: MIT
// What is made once for all runs: pictures and their rated pairs, and the reward models, each with what it cost.
#pragma once

#include "options.hpp"

namespace compare {

/// Draws and rates the pictures; writes `data`/pairs-<strategy>.safetensors for every strategy, held-out.safetensors
/// and pairs.json. Pictures that are there are taken up again, but then pairs.json tells no time of drawing.
void make_pairs(const Options& options);

/// Trains the latent reward model `data`/`reward_model` on the pairs of `world.mpcf_strategy`, with
/// `world.lrm_guidance`; its costs and accuracy are in `reward_model`.json.
void make_reward_model(const Options& options);

/// Trains SPO's preference model `data`/`reward_model` on the same pairs.
void make_preference_model(const Options& options);

}  // namespace compare
