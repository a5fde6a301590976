// SPDX-License-Identifier: MIT
// What the demo can be told, and the values that it was tuned to.
#pragma once

#include <cstdint>
#include <string>

#include <lpo/base/extents.hpp>

namespace demo {

using lpo::index_t;

struct Options {
  std::string model = "examples/tinyworld/model", out = "demo-out";
  std::uint64_t seed = 1;
  int threads = 0;
  bool resume = false;
  double guidance_scale = 2.0;
  // rated pairs: captions with four pictures each, six pairs a caption
  index_t rated_captions = 2000, held_out_captions = 300;
  int mpcf_strategy = 2;
  double rater_temperature = 0.035;  ///< raters then agree with the scorer on 92 to 94 % of the pairs that are no ties
  // reward model
  index_t lrm_steps = 800, lrm_batch = 32;  ///< captions a step
  double lrm_rate = 3e-4, lrm_guidance = 1.0, lrm_weight_decay = 0.05;
  // LPO
  index_t iterations = 60, prompts_per_iteration = 32, train_batch = 64, lora_rank = 8;
  double lpo_rate = 3e-4, beta = 200, threshold_quantile = 0.6;
  // evaluation
  index_t captions = 200, seeds = 4;
};

}  // namespace demo
