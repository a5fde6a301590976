// SPDX-License-Identifier: MIT
// The stage that trains the latent reward model on the rated pairs and measures it on held-out ones.
#include "reward_options.hpp"
#include "stages.hpp"

namespace demo {

void train_reward_model(Studio& studio, const Options& o, tw::RewardModel& reward, const RatedPairs& train, const RatedPairs& held_out,
                        tw::DemoReport& report) {
  lpo::LrmTrainerOptions options = reward_model_options(o);
  options.validation_steps = std::max<index_t>(1, o.lrm_steps / 12);
  options.checkpointing_steps = 100;
  options.checkpoints_total_limit = 1;
  options.output_dir = o.out + "/lrm";
  options.resume = o.resume;
  lpo::LrmTrainer trainer(studio.context, reward.lrm, reward.text_encoder, reward.store, studio.generator.schedule, options);
  trainer.train(train.latents, held_out.latents, std::ref(studio.bar));
  for (const int timestep : {1, 101, 201, 301, 401, 501, 601, 701, 801, 901})
    report.lrm_accuracy_by_timestep.emplace_back(timestep, trainer.accuracy(held_out.latents, timestep));
  report.lrm_accuracy = report.lrm_accuracy_by_timestep.front().second;
  const std::string log = options.output_dir + "/metrics.jsonl";
  report.lrm_loss = lpo::read_metric(log, "train_loss");
  report.lrm_validation = lpo::read_metric(log, "validation_accuracy");
  report.pairs_rated = train.rated;
  report.pairs_kept = train.latents.size();
  for (const auto& label : train.latents.labels) report.pairs_tied += label.tie() ? 1 : 0;
  report.rater_ceiling = held_out.decided > 0 ? static_cast<double>(held_out.agreed) / static_cast<double>(held_out.decided) : 0.0;
}

}  // namespace demo
