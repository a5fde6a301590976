// SPDX-License-Identifier: MIT
// What a run of the comparison can be told: how the world is, which method trains, how strongly, and for how long.
#pragma once

#include <string>

#include "../demo/options.hpp"

namespace compare {

using lpo::index_t;

struct Options {
  demo::Options world;  ///< base model, raters, reward model, LoRA rank, guidance; `world.seed` makes the data
  std::string data = "compare-out/data";  ///< folder of pictures, pairs and reward models
  std::string out = "run.json";
  std::string method = "lpo";
  std::uint64_t seed = 1;    ///< of the training
  double cpu_seconds = 240;  ///< of training, without the pauses in which it is measured
  bool tuning = false;       ///< measured on validation captions; the results are on evaluation captions
  double learning_rate = 3e-4, beta = 200;
  index_t batch = 32;    ///< pairs, or groups of candidates, of an optimizer step
  index_t prompts = 16;  ///< of a roll-out
  // reward models
  std::string reward_model = "lrm";  ///< folder in `data`
  index_t spm_steps = 400;           ///< SPO's preference model, which begins with drawn weights
  double spm_rate = 1e-3;
  // LPO
  int divert_start_step = 0, divert_end_step = 0;
  std::string threshold = "quantile";           ///< quantile, range or constant
  double threshold_min = 0, threshold_max = 0;  ///< range; constant is the minimum
  // the pictures that measure
  index_t captions = 200, pictures = 2, curve_captions = 100;
};

}  // namespace compare
