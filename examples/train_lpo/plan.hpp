// SPDX-License-Identifier: MIT
// What a run will need: shown by --dry-run before anything is read.
#pragma once

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "../common/console.hpp"
#include "../common/memory_plan.hpp"
#include "../common/weight_table.hpp"
#include "models.hpp"

namespace train_lpo {

/// The share of pairs that a run keeps is not known beforehand; the method assumes this one.
inline constexpr double assumed_kept = 0.4;

/// The plan of a policy of family F with a reward model of family R.
template <const examples::ModelFamily& F, const examples::ModelFamily& R, class T>
void print_run(const Job& job) {
  const Options& o = job.options;
  const lpo::LpoTrainerOptions& t = job.trainer;
  const auto policy = std::make_unique<Policy<F, T>>(job.policy());
  const auto reward = job.is("spo") ? nullptr : std::make_unique<Reward<F, R, T>>(job);
  const auto rater = job.is("spo") ? std::make_unique<PreferenceRater<F, T>>(job) : nullptr;
  const int side = job.resolution / F.vae.factor();

  std::printf("model        %s (%s)\n", job.model.path().c_str(), F.name);
  std::printf("objective    %s, beta %g\n", o.objective.c_str(), t.loss.beta);
  std::printf("reward model %s (%s)\n", job.rater().c_str(), reward ? R.name : "looks at predicted pictures");
  std::printf("prompts      %zu from %s\n", job.prompts.size(), o.prompt_file.c_str());
  std::printf("size         %d x %d, latents %d x %d x %d\n", job.resolution, job.resolution, side, side,
              F.unet.in_channels);
  std::printf("roll-out     %lld prompts, %d steps, %d candidates, guidance %g\n",
              static_cast<long long>(t.sample_batch_size), t.sample_steps, t.rollout.candidates, t.guidance_scale);
  std::printf("iterations   %lld, %lld an epoch, in %s\n", static_cast<long long>(t.max_train_iterations),
              static_cast<long long>(job.iterations_per_epoch), o.output_dir.c_str());
  examples::print_device_options(o.device);
  std::printf("optimizer    %lld pairs a step, %lld at once, learning rate %g\n",
              static_cast<long long>(t.train_batch_size), static_cast<long long>(t.micro_batch_size), t.learning_rate);

  examples::WeightTable<T> weights(o.device);
  weights.count(*policy);
  if (reward) weights.count("reward model", reward->store, 1);
  if (rater) weights.count("preference model", rater->store, 1);
  if (rater) weights.count("vae", rater->vae_store, 1);
  if (!rater && !o.validation_prompts.empty()) {
    lpo::AutoencoderKL<F.vae, T, Device> vae;
    lpo::ParameterStore<T, Device> store;
    store.add("vae", vae);
    weights.count("vae", store, 0);
  }
  weights.print_packed();
  double trained = 0;
  for (const auto& entry : policy->store.entries())
    if (policy->trains(entry.name)) trained += static_cast<double>(entry.parameter->size());
  const double optimizer = trained * examples::optimizer_bytes<T>(o.ema_decay > 0);
  std::printf("training       %12.0f %12s  gradients, moments%s\n", trained, examples::memory_text(optimizer).c_str(),
              o.ema_decay > 0 ? ", average" : "");

  // Activations.
  const double stored = sizeof(T), rows = t.guidance_scale == 1 ? 1 : 2, lrm_rows = o.features.guidance == 1 ? 1 : 2;
  const double prompts = static_cast<double>(t.sample_batch_size), candidates = prompts * t.rollout.candidates;
  const double scored = t.max_rows > 0 ? std::min(static_cast<double>(t.max_rows), candidates) : candidates;
  const auto work = examples::unet_work(F.unet, side, side, F.text.positions);
  const auto lrm = examples::unet_work(R.unet, side, side, R.text.positions);
  const double copies = t.dedup_forward ? 1 : 2;  // of a pair's rows in training
  const double pass = copies * rows * static_cast<double>(t.micro_batch_size);
  const double denoising = stored * examples::unet_activations(F.unet, rows * prompts, side, side);
  const double scoring = rater ? stored * (examples::unet_activations(F.unet, rows * scored, side, side) +
                                           examples::vae_activations(F.vae, job.resolution, job.resolution))
                               : stored * examples::unet_activations(R.unet, lrm_rows * scored, side, side);
  const double training =
      stored * pass *
      (t.gradient_checkpointing ? work.kept_by_layers + 2 * work.widest_layer
                                : (1 + examples::gradient_share) * work.kept);
  std::printf("activations  about %s denoising, %s scoring, %s training (%.0f rows%s)\n",
              examples::memory_text(denoising).c_str(), examples::memory_text(scoring).c_str(),
              examples::memory_text(training).c_str(), pass, t.gradient_checkpointing ? ", checkpointed" : "");
  examples::print_memory(weights.bytes() + optimizer + std::max({denoising, scoring, training}));

  // Time.
  auto context = examples::make_context(o.threads, o.device);
  const double rate = examples::measured_rate<T, Device>(context);
  const double steps = t.sample_steps, compared = std::max(0.0, steps - t.rollout.divert_start_step);
  // SPO denoises every candidate, which is the next step's denoising, and decodes it: about 2.25 times encoding.
  const double sampling = (rater ? steps - compared + 1 : steps) * rows * prompts * work.total();
  const double judging = rater ? compared * candidates *
                                     (rows * work.total() +
                                      2.25 * examples::vae_encoder_work(F.vae, job.resolution, job.resolution))
                               : compared * lrm_rows * candidates * (lrm.down + lrm.middle);
  const double backward = policy->reference ? 2 : 1.16;  // adapters need no products for the weights' gradients
  const double per_pair = copies * rows * work.total() * (2 + backward + (t.gradient_checkpointing ? 1 : 0));
  const double kept = job.is("grpo") ? 1.0 : assumed_kept;
  const double updating = kept * compared * prompts * per_pair;
  const double seconds = (sampling + judging + updating) / rate;
  std::printf(
      "work         %.4g TFLOP an iteration: %.0f %% denoising, %.0f %% scoring, %.0f %% training (if %.0f %% of the "
      "pairs are kept)\n",
      (sampling + judging + updating) / 1e12, 100 * sampling / (sampling + judging + updating),
      100 * judging / (sampling + judging + updating), 100 * updating / (sampling + judging + updating),
      100 * kept);
  std::printf("time         at least %s an iteration, %s in all, at the %.0f GFLOP/s that matrix products reach here\n",
              examples::clock_text(seconds).c_str(),
              examples::clock_text(seconds * static_cast<double>(t.max_train_iterations)).c_str(), rate / 1e9);
}

template <const examples::ModelFamily& F, class T>
void print_plan(const Job& job) {
  examples::with_reward_family<F>([&]<const examples::ModelFamily & R>() { print_run<F, R, T>(job); });
}

}  // namespace train_lpo
