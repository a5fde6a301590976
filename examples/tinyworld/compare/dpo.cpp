// SPDX-License-Identifier: MIT
// Diffusion-DPO on the rated pairs.
#include <lpo/train/dpo_trainer.hpp>
#include <lpo/train/latent_pairs_file.hpp>

#include "methods.hpp"

namespace compare {

void train_dpo(demo::Studio& studio, const Options& o, Recorder& recorder) {
  const auto pairs = lpo::load_latent_pairs(pairs_file(o, o.world.mpcf_strategy));
  const NetworkWork network;
  lpo::DpoTrainerOptions options;
  options.max_train_steps = 1 << 20;
  options.train_batch_size = o.batch;
  options.micro_batch_size = 32;  // for memory: the gradients are those of the whole batch
  options.beta_dpo = o.beta;
  options.learning_rate = o.learning_rate;
  options.lr_warmup_steps = 10;
  options.optimizer.weight_decay = 1e-4;  // as the other methods
  options.seed = o.seed;
  options.on_metrics = [&](index_t, const lpo::MetricValues&) {
    const double count = static_cast<double>(o.batch);
    recorder.add({.flops = network.training(2 * count) + count * network.text, .samples = count, .pictures = 0});
  };
  auto& g = studio.generator;
  lpo::DpoTrainer trainer(studio.context, g.unet, g.store, g.text_encoder, g.schedule, options);
  try {
    trainer.train(pairs, std::ref(recorder));
  } catch (const lpo::CancelledError&) {  // the recorder says when to stop
  }
}

}  // namespace compare
