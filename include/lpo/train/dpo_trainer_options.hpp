// SPDX-License-Identifier: MIT
// DpoTrainerOptions and DpoTrainerReport: what Diffusion-DPO is told, and what it did.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include <lpo/diffusion/prediction.hpp>
#include <lpo/optim/adamw.hpp>
#include <lpo/optim/schedule.hpp>
#include <lpo/train/metrics.hpp>

namespace lpo::inline LPO_ABI {

/// Defaults are SD1.5's of the paper (arXiv 2311.12908) and its code; the effective batch there is 2048 pairs.
struct DpoTrainerOptions {
  index_t max_train_steps = 2000;
  index_t train_batch_size = 2048;  ///< pairs per optimiser step
  index_t micro_batch_size = 1;     ///< pairs of one forward and backward; gradients add up to the batch's. 0 = all at once
  double beta_dpo = 5000;
  double proportion_empty_prompts = 0.2;  ///< chance that a pair is trained under the empty prompt
  PredictionType prediction_type = PredictionType::epsilon;
  double learning_rate = 2.048e-5;
  LearningRateKind lr_scheduler = LearningRateKind::constant_with_warmup;
  index_t lr_warmup_steps = 500;
  AdamWOptions optimizer{.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 1e-2};
  double max_grad_norm = 1.0;  ///< 0 turns clipping off; the norm is logged either way
  double ema_decay = 0;        ///< > 0: keep an exponential moving average of the trained weights beside them
  int max_skipped_steps = 10;  ///< stop after so many steps in a row without finite gradients (FiniteGuard); 0 = never
  bool gradient_checkpointing = false;
  double loss_scale = 1;       ///< multiplies gradients on their way; for half, which has no numbers below 6e-8. A power of two
  double max_seconds = 0;      ///< stop after so many seconds and report it, which gives up reproducibility; 0 = never
  index_t checkpointing_steps = 0;  ///< a checkpoint every so many steps; 0 = none
  int checkpoints_total_limit = 2;  ///< how many are kept; 0 = all
  std::uint64_t seed = 42;
  std::string output_dir;
  bool resume = false;  ///< go on from the newest checkpoint; without it a folder that has checkpoints is refused
  std::map<std::string, std::string> more_settings;  ///< of the program: compared on resume, as the trainer's own are
  /// Called after each step with its line of the log; on rank 0 only.
  std::function<void(index_t step, const MetricValues&)> on_metrics;
  /// Adds files of its own to a checkpoint's folder; on rank 0 only.
  std::function<void(const std::string& folder)> checkpoint_files;
};

/// What a run did.
struct DpoTrainerReport {
  index_t steps = 0;
  index_t pairs = 0;  ///< pairs with a preference in the data; ties are dropped
  index_t skipped_steps = 0;  ///< left out because loss or gradients were not finite
  bool time_limit_reached = false;
};

}  // namespace lpo::inline LPO_ABI
