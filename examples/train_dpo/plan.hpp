// SPDX-License-Identifier: MIT
// What a run will need: shown by --dry-run before anything is encoded or read.
#pragma once

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "../common/console.hpp"
#include "../common/memory_plan.hpp"
#include "../common/weight_table.hpp"
#include "job.hpp"

namespace train_dpo {

template <const examples::ModelFamily& F, class T>
void print_plan(const Job& job) {
  using examples::Device;
  const Options& o = job.options;
  const lpo::DpoTrainerOptions& t = job.trainer;
  const auto policy = std::make_unique<examples::Policy<F, T>>(job.policy());
  const int side = job.resolution / F.vae.factor();
  std::printf("model        %s (%s)\n", job.model.path().c_str(), F.name);
  std::printf("train        %s\n", examples::data_text(job.data).c_str());
  std::printf("size         %d x %d, latents %d x %d x %d\n", job.resolution, job.resolution, side, side,
              F.unet.in_channels);
  std::printf("steps        %lld of %lld pairs, %lld at once, in %s\n", static_cast<long long>(t.max_train_steps),
              static_cast<long long>(t.train_batch_size), static_cast<long long>(t.micro_batch_size),
              o.output_dir.c_str());
  examples::print_device_options(o.device);
  std::printf("optimizer    beta %g, learning rate %g (%s, %lld steps of warm-up)\n", t.beta_dpo, t.learning_rate,
              o.lr_scheduler.c_str(), static_cast<long long>(t.lr_warmup_steps));

  examples::WeightTable<T> weights(o.device);
  weights.count(*policy);
  lpo::AutoencoderKL<F.vae, T, Device> vae;
  lpo::ParameterStore<T, Device> vae_store;
  vae_store.add("vae", vae);
  if (job.validation().wanted()) weights.count("vae", vae_store, 0);
  weights.print_packed();
  double trained = 0;
  for (const auto& entry : policy->store.entries())
    if (policy->trains(entry.name)) trained += static_cast<double>(entry.parameter->size());
  const double optimizer = trained * examples::optimizer_bytes<T>(o.ema_decay > 0);
  std::printf("training       %12.0f %12s  gradients, moments%s\n", trained, examples::memory_text(optimizer).c_str(),
              o.ema_decay > 0 ? ", average" : "");

  const auto work = examples::unet_work(F.unet, side, side, F.text.positions);
  const double rows = 2 * static_cast<double>(t.micro_batch_size), stored = sizeof(T);
  const double kept = t.gradient_checkpointing ? work.kept_by_layers + 2 * work.widest_layer
                                               : (1 + examples::gradient_share) * work.kept;
  // The reference's pass is over before the policy's begins; its memory stands for what a tape takes beyond this count.
  const double activations = stored * (rows * kept + examples::unet_activations(F.unet, rows, side, side));
  double encoder = 0;
  for (const auto& entry : vae_store.entries()) encoder += 4 * static_cast<double>(entry.parameter->size());
  encoder += 4 * examples::vae_activations(F.vae, job.resolution, job.resolution);
  std::printf("activations  about %s (%.0f rows%s)\n", examples::memory_text(activations).c_str(), rows,
              t.gradient_checkpointing ? ", checkpointed" : "");
  examples::print_memory(std::max(weights.bytes() + optimizer + activations, encoder));

  auto context = examples::make_context(o.threads, o.device);
  const double rate = examples::measured_rate<T, Device>(context);
  const double backward = policy->reference ? 2 : 1.16;  // adapters need no products for the weights' gradients
  double text = examples::text_work(F.text);
  if (F.two_text_encoders) text += examples::text_work(F.text_2);
  const double per_pair = 2 * work.total() * (2 + backward + (t.gradient_checkpointing ? 1 : 0)) + text;
  const double step = static_cast<double>(t.train_batch_size) * per_pair;
  const double seconds = step / rate;
  std::printf("work         %.4g TFLOP a step\n", step / 1e12);
  std::printf("time         at least %.2f s a step, %s in all, at the %.0f GFLOP/s that matrix products reach here\n",
              seconds, examples::clock_text(seconds * static_cast<double>(t.max_train_steps)).c_str(), rate / 1e9);
  if (job.data.has_pictures())
    std::printf("encoding     at least %.2g s a picture, once; the cache is in %s\n",
                examples::vae_encoder_work(F.vae, job.resolution, job.resolution) /
                    examples::measured_rate<float, Device>(context),
                o.cache_dir.c_str());
}

}  // namespace train_dpo
