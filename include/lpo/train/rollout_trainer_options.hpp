// SPDX-License-Identifier: MIT
// What RolloutTrainer is told and what it reports: options that every objective has, prompts, and the report of a run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <lpo/optim/adamw.hpp>
#include <lpo/optim/schedule.hpp>
#include <lpo/preference/rollout.hpp>
#include <lpo/train/metrics.hpp>

namespace lpo::inline LPO_ABI {

/// The parts of an iteration, in the order in which they begin. Denoising and scoring take turns, step by step;
/// reference, policy (forward and backward) and optimizer do so by mini-batches.
enum class LpoStage { text, denoising, scoring, reference, policy, optimizer };

/// Defaults and names of options are those of the released code for SD1.5 (arXiv 2502.01051). An item is what an
/// objective trains on: a pair (LPO, SPO), or all candidates of a prompt at a step (GRPO).
struct RolloutTrainerOptions {
  index_t max_train_iterations = 1000;  ///< roll-outs
  index_t sample_batch_size = 5;        ///< prompts per roll-out
  index_t train_batch_size = 10;        ///< items per optimiser step
  index_t micro_batch_size = 0;         ///< items of one forward and backward; gradients add up to the batch's. 0 = all at once
  int sample_steps = 20;                ///< S
  double guidance_scale = 5.0;          ///< in sampling and training
  double eta = 1.0;
  RolloutOptions rollout;
  double learning_rate = 6e-5;
  LearningRateKind lr_scheduler = LearningRateKind::constant;
  index_t lr_warmup_steps = 0;  ///< optimiser steps
  AdamWOptions optimizer{.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 1e-4};
  double ema_decay = 0;        ///< > 0: keep an exponential moving average of the trained weights beside them
  int max_skipped_steps = 10;  ///< stop after so many steps in a row without finite gradients (FiniteGuard); 0 = never
  bool gradient_checkpointing = false;
  bool small_bucket_includes_t1 = true;  ///< in the log; see kept_buckets
  double loss_scale = 1;        ///< multiplies gradients on their way; for half, which has no numbers below 6e-8. A power of two
  double max_grad_norm = 0;     ///< 0 = off, what the released code really does; the norm is logged either way
  index_t max_rows = 0;         ///< rows of one scoring pass; 0 = all candidates at once
  bool half_reference = false;  ///< the reference's predictions and their guidance are half, the policy's as they are
  bool half_scores = false;     ///< LRM scores are rounded to half, as those of the released code, which lie 2^-7 apart above 8
  double max_seconds = 0;       ///< stop after so many seconds and report it, which gives up reproducibility; 0 = never
  index_t checkpointing_iterations = 0;  ///< a checkpoint every so many iterations; 0 = none
  int checkpoints_total_limit = 2;       ///< how many are kept; 0 = all
  std::uint64_t seed = 42;
  std::string output_dir;
  bool resume = false;  ///< go on from the newest checkpoint; without it a folder that has checkpoints is refused
  std::map<std::string, std::string> more_settings;  ///< of the program: compared on resume, as the trainer's own are
  /// Called after each iteration with its line of the log; on rank 0 only.
  std::function<void(index_t iteration, const MetricValues&)> on_metrics;
  /// Adds files of its own to a checkpoint's folder; on rank 0 only.
  std::function<void(const std::string& folder)> checkpoint_files;
  /// Called when a part begins; on a device, work called before may still run.
  std::function<void(LpoStage)> on_stage;
};

/// Tells what listens on `options` that a part begins.
inline void begin_stage(const RolloutTrainerOptions& options, LpoStage stage) {
  if (options.on_stage) options.on_stage(stage);
}

/// Items whose activations are in memory at once.
inline index_t micro_batch_items(const RolloutTrainerOptions& options) {
  return options.micro_batch_size > 0 ? std::min(options.micro_batch_size, options.train_batch_size)
                                      : options.train_batch_size;
}

/// Prompts as token ids, for the policy's text encoder and for the reward model's own.
struct PromptTokens {
  index_t tokens = 0;
  std::vector<std::int32_t> ids;         ///< [count, tokens]
  index_t reward_tokens = 0;
  std::vector<std::int32_t> reward_ids;  ///< [count, reward_tokens]

  index_t size() const { return tokens > 0 ? static_cast<index_t>(ids.size()) / tokens : 0; }
};

/// What a run did. `kept_per_step[i]` counts items kept at sampling step i, `drawn_per_step` those looked at.
struct RolloutTrainerReport {
  index_t iterations = 0;
  index_t optimizer_steps = 0;
  index_t pairs = 0;          ///< items trained on
  index_t skipped_steps = 0;  ///< optimiser steps left out because gradients were not finite
  bool time_limit_reached = false;
  std::vector<int> timesteps;
  std::vector<double> thresholds;
  std::vector<double> kept_per_step, drawn_per_step;
};

}  // namespace lpo::inline LPO_ABI
