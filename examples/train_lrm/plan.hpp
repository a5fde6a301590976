// SPDX-License-Identifier: MIT
// What a run will need: shown by --dry-run before anything is encoded.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>

#include <lpo/lpo.hpp>

#include "../common/console.hpp"
#include "../common/device.hpp"
#include "../common/memory_plan.hpp"
#include "options.hpp"

namespace train_lrm {

/// Weights are float: the trained ones with gradient, two moments and, if there is validation, the best so far.
inline void print_plan(const Job& job, const examples::ModelFamily& family) {
  const Options& o = job.options;
  const auto& t = o.training;
  const bool validates = job.validation.kind != DataSet::Kind::none || o.validation_pairs > 0;
  const int side = job.resolution / family.vae.factor();
  std::printf("model        %s (%s)\n", job.model.path().c_str(), family.name);
  std::printf("train        %s\n", examples::data_text(job.train).c_str());
  std::printf("validation   %s\n", o.validation_pairs > 0 ? lpo::message(o.validation_pairs, " pairs held out").c_str()
                                                          : examples::data_text(job.validation).c_str());
  std::printf("size         %d x %d, latents %d x %d x %d\n", job.resolution, job.resolution, side, side,
              family.unet.in_channels);
  std::printf("steps        %lld of %lld pairs, %lld at once, %s loss\n", static_cast<long long>(t.max_train_steps),
              static_cast<long long>(t.train_batch_size),
              static_cast<long long>(t.micro_batch_size > 0 ? t.micro_batch_size : t.train_batch_size), o.loss.c_str());
  examples::print_device_options(o.device);
  std::printf("trained      unet (down and middle), projections, logit_scale%s\n",
              o.freeze_text_encoder ? "" : ", text encoder");

  double trained = 0, frozen = 0;
  const auto count = [&](const char* component, auto counts) {
    const lpo::TensorTable weights = job.model.weights(component, family);
    double sum = 0;
    for (const std::string& key : weights.keys())
      if (counts(key)) sum += static_cast<double>(weights.info(key).count());
    return sum;
  };
  const auto all = [](const std::string&) { return true; };
  trained += count("unet", [](const std::string& key) {
    return !key.starts_with("up_blocks.") && !key.starts_with("conv_norm_out.") && !key.starts_with("conv_out.");
  });
  double text = count("text_encoder", all);
  if (family.two_text_encoders) text += count("text_encoder_2", all);
  (o.freeze_text_encoder ? frozen : trained) += text;
  trained += family.reward_width *
                 static_cast<double>(family.unet.feature_width() + (family.two_text_encoders ? 0 : family.text.width)) +
             1;
  const double copies = 4 + (validates ? 1 : 0) + (t.ema_decay > 0 ? 1 : 0);
  const double packed = examples::packed_number_bytes(sizeof(float), false, o.device) * frozen;
  const double weights = 4 * (copies * trained + frozen) + packed;
  const examples::UNetWork unet = examples::unet_work(family.unet, side, side, family.text.positions);
  const double pairs = static_cast<double>(
      std::min(t.train_batch_size, t.micro_batch_size > 0 ? t.micro_batch_size : t.train_batch_size));
  const double rows = 2 * pairs * (o.features.guidance == 1 ? 1 : 2);
  const double kept = t.gradient_checkpointing ? unet.kept_by_layers + unet.widest_layer : unet.kept_by_encoder;
  const double activations = 4 * rows * kept;
  const double encoding =
      4 * (count("vae", all) + examples::vae_activations(family.vae, job.resolution, job.resolution));
  std::printf("weights      %.1f million trained, %.1f million frozen: %s with gradients and moments\n", trained / 1e6,
              frozen / 1e6, examples::memory_text(weights).c_str());
  std::printf("activations  about %s (%d rows)\n", examples::memory_text(activations).c_str(), static_cast<int>(rows));
  examples::print_memory(std::max(weights + activations, encoding));

  auto context = examples::make_context(o.threads, o.device, job.processes);
  const double rate = examples::measured_rate<float>(context);
  double text_flops = examples::text_work(family.text);
  if (family.two_text_encoders) text_flops += examples::text_work(family.text_2);
  const double batch = static_cast<double>(t.train_batch_size);
  const double step =
      batch * ((t.gradient_checkpointing ? 4 : 3) * 2 * (o.features.guidance == 1 ? 1 : 2) * (unet.down + unet.middle) +
               (o.freeze_text_encoder ? 1 : 3) * text_flops);
  const double seconds = step / rate;
  std::printf("time         at least %.2f s a step, %s in all, at the %.0f GFLOP/s of a large product here\n", seconds,
              examples::clock_text(seconds * static_cast<double>(t.max_train_steps)).c_str(), rate / 1e9);
  if (job.train.has_pictures())
    std::printf("encoding     at least %.2g s a picture, once; the cache is in %s\n",
                examples::vae_encoder_work(family.vae, job.resolution, job.resolution) / rate, o.cache_dir.c_str());
}

}  // namespace train_lrm
