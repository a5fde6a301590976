// SPDX-License-Identifier: MIT
// LrmTrainerOptions and LrmTrainerReport: what the training of a reward model is told, and what it did.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include <lpo/optim/adamw.hpp>
#include <lpo/optim/schedule.hpp>
#include <lpo/reward/accuracy.hpp>
#include <lpo/reward/loss.hpp>
#include <lpo/train/latent_pairs.hpp>
#include <lpo/train/metrics.hpp>

namespace lpo::inline LPO_ABI {

/// Defaults are those of LRM-1.5, SD1.5's reward model in arXiv 2502.01051; names of options are the released code's.
struct LrmTrainerOptions {
  index_t max_train_steps = 4000;
  index_t train_batch_size = 128;  ///< pairs, or prompts when they are the unit of a batch
  BatchUnit batch_unit = BatchUnit::pair;
  index_t micro_batch_size =
      0;  ///< batch units whose activations are in memory at once; 0 = all. For the pair loss only
  double learning_rate = 1e-5;
  index_t lr_warmup_steps = 500;
  LearningRateKind lr_scheduler = LearningRateKind::log_warmup_decay;
  FirstStepRate lr_first_step = FirstStepRate::zero;
  AdamWOptions optimizer{.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.3};
  double max_grad_norm = 1.0;  ///< 0 turns clipping off; the norm is logged either way
  double ema_decay = 0;        ///< > 0: validate and export an exponential moving average of the weights
  RewardLossOptions loss;
  bool shared_pair_noise = false;  ///< pair_noise = independent | shared (by all images of a batch unit)
  double noise_offset = 0;         ///< n += this times one normal number for each image and channel, in training
  /// Adds to the batch units one for each pair with a winner: the winner at two neighbouring timesteps, of which the less
  /// noisy one is preferred. `loss.aux_coefficient` weighs them.
  bool compare_between_timestep = false;
  int timestep_interval = 50;
  int largest_timestep = 951;  ///< candidates are 1, 1 + interval, ..., largest
  int validation_timestep = 1;
  index_t validation_steps = 100;   ///< validate every so many steps; 0 = at the end only
  index_t checkpointing_steps = 0;  ///< 0 = no checkpoints
  int checkpoints_total_limit = 2;
  enum class Export { last, best } export_weights = Export::last;
  int max_skipped_steps = 10;  ///< stop after so many steps in a row without finite gradients (FiniteGuard); 0 = never
  bool gradient_checkpointing = false;  ///< less memory for about a third more time
  std::uint64_t seed = 42;
  std::string title = "LRM training";  ///< of Progress::stage
  std::string output_dir;              ///< checkpoints and metrics.jsonl; empty = nothing is written
  bool resume = false;  ///< go on from the newest checkpoint; without it a folder that has checkpoints is refused
  std::map<std::string, std::string> more_settings;  ///< of the program: compared on resume, as the trainer's own are
  std::function<void(index_t step, const MetricValues&)> on_metrics;  ///< after each step: its line; on rank 0 only
};

/// Result of a training run.
struct LrmTrainerReport {
  index_t steps = 0;
  index_t skipped_steps = 0;  ///< left out because loss or gradients were not finite
  double final_loss = 0;
  double validation_accuracy = 0;  ///< of the exported weights
  double best_validation_accuracy = 0;
  index_t best_step = 0;
};

/// Validation accuracy at one timestep.
struct TimestepAccuracy {
  int timestep = 0;
  AccuracyInterval interval;  ///< 95 %
};

}  // namespace lpo::inline LPO_ABI
