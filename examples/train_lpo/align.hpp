// SPDX-License-Identifier: MIT
// The run itself: read both models, train, draw between epochs, log, and write the result and its report.
#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>

#include "../common/console.hpp"
#include "../common/tensorboard.hpp"
#include "../common/validation_pictures.hpp"
#include "models.hpp"
#include "results.hpp"

namespace train_lpo {

/// What every objective shares. `make(add_hooks)` gives the trainer, after it has called `add_hooks(options)`.
template <const examples::ModelFamily& F, class T, class Make>
void train(const Job& job, examples::Policy<F, T>& policy, examples::ValidationPictures<F, T>& validation,
           const lpo::PromptTokens& tokens, const Make& make) {
  const Options& o = job.options;
  const std::string& folder = o.output_dir;
  std::unique_ptr<examples::EventWriter> events;
  std::function<void(const std::string&)> save_checkpoint;  // the trainer that it needs comes later
  auto trainer = make([&](lpo::RolloutTrainerOptions& options) {
    options.on_metrics = [&](index_t iteration, const lpo::MetricValues& values) { events->scalars(iteration, values); };
    options.checkpoint_files = [&](const std::string& into) { save_checkpoint(into); };
  });
  if (policy.reference) trainer.set_reference(*policy.reference);
  using Averages = examples::WithAverages<std::remove_pointer_t<decltype(trainer.ema())>>;
  save_checkpoint = [&](const std::string& into) { examples::save_checkpoint_policy(policy, trainer.ema(), into); };

  Results results(job);
  examples::ProgressBar bar;
  index_t drawn_at = -1;
  const auto progress = [&](const lpo::Progress& p) {
    if (!job.processes.first()) return bar(p);
    if (!events) events = std::make_unique<examples::EventWriter>(folder, p.first_step);
    const bool go_on = bar(p);
    const index_t epoch = p.step / job.iterations_per_epoch;
    const bool due = p.step % job.iterations_per_epoch == 0 && (epoch % o.validation_epochs == 0 || p.step == p.total);
    if (!go_on || !due || drawn_at == p.step || !validation.wanted()) return go_on;
    drawn_at = p.step;
    const Averages averages(trainer.ema());
    try {
      for (const auto& picture : validation.draw(epoch))
        events->picture(p.step, picture.tag, picture.height, picture.width, picture.png);
    } catch (const lpo::CancelledError&) {
      return false;
    }
    return true;
  };

  try {
    results.finish(trainer.train(tokens, progress));
  } catch (...) {
    if (job.processes.first()) try {
      results.write("stopped");
    } catch (const lpo::FileError& error) {  // why it stopped matters more
      std::fprintf(stderr, "\nno report: %s\n", error.what());
    }
    throw;
  }
  if (!job.processes.first()) return;
  std::string saved;
  {
    const Averages averages(trainer.ema());
    saved = policy.save(folder);
  }
  results.write("finished");
  std::printf("%s\n%s/report.html\n", saved.c_str(), folder.c_str());
}

/// The run of a policy of family F with a reward model of family R, or with a preference model.
template <const examples::ModelFamily& F, const examples::ModelFamily& R, class T>
void run(const Job& job) {
  const Options& o = job.options;
  auto context = examples::make_context(o.threads, job.processes);
  // All are compared with what this program is compiled for before gigabytes are read.
  const auto policy = std::make_unique<Policy<F, T>>(job.policy());
  const auto reward = job.is("spo") ? nullptr : std::make_unique<Reward<F, R, T>>(job);
  std::fprintf(stderr, "reading %s and %s\n", job.model.path().c_str(), job.rater().c_str());
  policy->read();
  if (reward) reward->read(job);
  const auto validation = std::make_unique<examples::ValidationPictures<F, T>>(context, job.validation(), *policy);

  const lpo::NoiseSchedule schedule(job.schedule);
  auto policy_text = policy->text.encoder("", job.empty_prompt(), job.resolution, job.resolution);
  const index_t side = job.resolution / F.vae.factor();
  const lpo::Extents<3> latent{side, side, F.unet.in_channels};
  const auto ranks = [&] { return examples::make_ranks(context, job.processes); };
  if (!reward) {
    const auto rater = std::make_unique<PreferenceRater<F, T>>(job);
    rater->read(job);
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
