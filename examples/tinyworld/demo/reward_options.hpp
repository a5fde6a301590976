// SPDX-License-Identifier: MIT
// How the tiny world's reward models are trained.
#pragma once

#include <lpo/train/lrm_trainer.hpp>

#include "options.hpp"

namespace demo {

/// A batch is of captions with all their pairs. Nothing is validated or saved on the way.
inline lpo::LrmTrainerOptions reward_model_options(const Options& o) {
  lpo::LrmTrainerOptions options;
  options.max_train_steps = o.lrm_steps;
  options.train_batch_size = o.lrm_batch;
  options.batch_unit = lpo::BatchUnit::prompt;
  options.learning_rate = o.lrm_rate;
  options.lr_scheduler = lpo::LearningRateKind::linear;
  options.lr_warmup_steps = o.lrm_steps / 20;
  options.optimizer.weight_decay = o.lrm_weight_decay;
  options.ema_decay = 0.99;
  options.validation_steps = 0;
  options.seed = o.seed;
  return options;
}

}  // namespace demo
