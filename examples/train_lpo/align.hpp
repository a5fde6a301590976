// SPDX-License-Identifier: MIT
// The run itself: read both models, train, draw between epochs, log, and write the result and its report.
#pragma once

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "../common/train_policy.hpp"
#include "models.hpp"
#include "results.hpp"

namespace train_lpo {

/// What every objective shares; `make` as train_policy wants it.
template <const examples::ModelFamily& F, class T, class Make>
void train(const Job& job, examples::Policy<F, T>& policy, examples::ValidationPictures<F, T>& validation,
           const lpo::PromptTokens& tokens, const Make& make) {
  Results results(job);
  const auto make_resumable = [&](const auto& add_hooks) {
    return make([&](auto& options) {
      add_hooks(options);
      options.more_settings.merge(resume_settings(job));
    });
  };
  examples::train_policy(
      job.processes, job.options.output_dir, job.settings, policy, validation, tokens, results, make_resumable,
      [&](const lpo::Progress& p) {
        const index_t epoch = p.step / job.iterations_per_epoch;
        const bool due = p.step % job.iterations_per_epoch == 0 &&
                         (epoch % job.options.validation_epochs == 0 || p.step == p.total);
        return due ? std::optional(epoch) : std::nullopt;
      });
  if (!job.processes.first() || results.trained_items() > 0) return;
  const auto& t = job.trainer.threshold;
  std::fprintf(stderr,
               "train_lpo: warning: no pair was kept in any roll-out, so nothing was learned; gaps of the scores never "
               "exceeded %s: lower that, or let --threshold_quantile find thresholds\n",
               (t.mode == lpo::ThresholdMode::constant
                    ? lpo::message("--threshold_const ", t.constant)
                    : lpo::message("--threshold_min ", t.minimum, " to --threshold_max ", t.maximum)).c_str());
}

/// The run of a policy of family F with a reward model of family R, or with a preference model.
template <const examples::ModelFamily& F, const examples::ModelFamily& R, class T>
void run(const Job& job) {
  const Options& o = job.options;
  auto context = examples::make_context(o.threads, o.device, job.processes);
  // All are compared with what this program is compiled for before gigabytes are read.
  const auto policy = std::make_unique<Policy<F, T>>(job.policy());
  const auto reward = job.is("spo") ? nullptr : std::make_unique<Reward<F, R, T>>(job);
  std::fprintf(stderr, "reading %s and %s\n", job.model.path().c_str(), job.rater().c_str());
  policy->read();
  if (reward) reward->read(job);
  const auto packed = examples::keep_packed(context, policy->store, o.device);
  const auto packed_reference = examples::keep_packed(context, policy->reference_store, o.device);
  const auto packed_reward = reward ? examples::keep_packed(context, reward->store, o.device) : nullptr;
  const auto validation = std::make_unique<examples::ValidationPictures<F, T>>(context, job.validation(), *policy);

  const lpo::NoiseSchedule schedule(job.schedule);
  auto policy_text = policy->text.encoder("", job.empty_prompt(), job.resolution, job.resolution);
  const index_t side = job.resolution / F.vae.factor();
  const lpo::Extents<3> latent{side, side, F.unet.in_channels};
  const auto ranks = [&] { return examples::make_ranks(context, job.processes); };
  if (!reward) {
    const auto rater = std::make_unique<PreferenceRater<F, T>>(job);
    rater->read(job);
    const auto packed_rater = examples::keep_packed(context, rater->store, o.device);
    const auto packed_vae = examples::keep_packed(context, rater->vae_store, o.device);
    return train<F, T>(job, *policy, *validation, token_ids(job.prompts, policy->text, *rater), [&](const auto& add_hooks) {
      auto options = job.spo();
      add_hooks(options);
      return lpo::SpoTrainer(context, policy->unet, policy->store, policy_text, rater->vae, rater->model, schedule, latent,
                             options, ranks());
    });
  }
  auto reward_text = reward->text.encoder("", lpo::EmptyPrompt::encoded, job.resolution, job.resolution);
  const auto tokens = token_ids(job.prompts, policy->text, reward->text);
  if (job.is("grpo"))
    return train<F, T>(job, *policy, *validation, tokens, [&](const auto& add_hooks) {
      auto options = job.grpo();
      add_hooks(options);
      return lpo::GrpoTrainer(context, policy->unet, policy->store, policy_text, reward->lrm, reward_text, schedule,
                              latent, options, ranks());
    });
  train<F, T>(job, *policy, *validation, tokens, [&](const auto& add_hooks) {
    auto options = job.trainer;
    add_hooks(options);
    return lpo::LpoTrainer(context, policy->unet, policy->store, policy_text, reward->lrm, reward_text, schedule, latent,
                           options, ranks());
  });
}

template <const examples::ModelFamily& F, class T>
void align(const Job& job) {
  examples::with_reward_family<F>([&]<const examples::ModelFamily & R>() { run<F, R, T>(job); });
}

}  // namespace train_lpo
