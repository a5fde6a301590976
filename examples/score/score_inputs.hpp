// SPDX-License-Identifier: MIT
// From a job to scores with a reward model of one family: encode pictures, add noise, run the model.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include <lpo/diffusion/torch_noise.hpp>
#include <lpo/io/latent_reward_folder.hpp>
#include <lpo/io/resize.hpp>
#include <lpo/train/finite_guard.hpp>

#include "../common/console.hpp"
#include "../common/device.hpp"
#include "../common/text_side.hpp"
#include "job.hpp"

namespace score {

using examples::Device, lpo::Cpu, lpo::index_t;

/// x_0 of every input, [n, h, w, c]: of a picture, the mean that the base model's autoencoder gives it.
template <const examples::ModelFamily& F>
lpo::Tensor<float, 4> clean_latents(lpo::Tape<Device>& tape, const Job& job) {
  using Vae = lpo::AutoencoderKL<F.vae, float, Device>;
  std::unique_ptr<Vae> vae;
  lpo::ParameterStore<float, Device> store;
  const index_t side = job.resolution / F.vae.factor(), channels = F.unet.in_channels;
  const auto& first = job.inputs.front();
  const index_t height = first.latent.empty() ? side : first.height, width = first.latent.empty() ? side : first.width;
  lpo::Tensor<float, 4> latents(lpo::Extents<4>{static_cast<index_t>(job.inputs.size()), height, width, channels});
  const auto guard = tape.inference();
  for (std::size_t i = 0; i < job.inputs.size(); ++i) {
    const Input& input = job.inputs[i];
    float* out = latents.data() + static_cast<index_t>(i) * height * width * channels;
    if (!input.latent.empty()) {
      if (input.height != height || input.width != width ||
          static_cast<index_t>(input.latent.size()) != height * width * channels)
        throw lpo::ShapeError(lpo::message("[score] ", input.name, ": a latent of ", input.latent.size(), " numbers, ",
                                           input.height, " x ", input.width, "; expected ", channels, " channels of ",
                                           height, " x ", width));
      for (index_t at = 0; at < height * width; ++at)
        for (index_t c = 0; c < channels; ++c)
          out[at * channels + c] = input.latent[static_cast<std::size_t>(c * height * width + at)];
      continue;
    }
    if (height != side || width != side)
      throw lpo::ShapeError(lpo::message("[score] ", input.name, ": pictures of ", job.resolution,
                                         " pixels have latents of ", side, " x ", side, ", the latents are ", height,
                                         " x ", width, "; score them apart"));
    if (!vae) {
      vae = std::make_unique<Vae>();
      store.add("vae", *vae);
      store.allocate_frozen();
      job.base_model.load_vae(*vae, store);
    }
    const auto start = tape.snapshot();
    const lpo::RgbImage picture = lpo::resize_image(input.image, job.resolution, job.resolution);
    lpo::Tensor<float, 4> pixels(lpo::Extents<4>{1, job.resolution, job.resolution, 3});
    lpo::values_of_image(picture, pixels.data());
    const auto there = lpo::to_device<Device>(pixels);
    const auto mean = vae->encode(lpo::constant(tape, there)).mean;
    tape.context().copy_to_host(out, mean.data(), static_cast<std::size_t>(mean.size()) * sizeof(float));
    for (index_t k = 0; k < mean.size(); ++k) out[k] *= vae->scaling_factor;
    tape.rewind(start);
  }
  return latents;
}

template <const examples::ModelFamily& F>
Scores score_inputs(const Job& job) {
  constexpr bool sdxl = F.two_text_encoders;
  constexpr int text_width = sdxl ? F.text_2.projection : F.text.width;
  using Lrm = lpo::LatentRewardModel<F.unet, text_width, F.reward_width, !sdxl, float, Device>;
  auto context = examples::make_context(job.threads, job.device);
  lpo::Context<Cpu> host(job.threads);
  lpo::Tape<Device> tape(context);
  const lpo::NoiseSchedule schedule(job.base_model.has_scheduler() ? job.base_model.scheduler()
                                                                   : lpo::SchedulerConfig{});
  const auto clean = clean_latents<F>(tape, job);

  const auto lrm = std::make_unique<Lrm>();
  lrm->use_features(job.features);
  const bool own = lpo::file_exists(job.reward_model + "/tokenizer/vocab.json");
  examples::TextSide<F, float> text((own ? examples::ModelSource(job.reward_model) : job.base_model).tokenizers(F));
  examples::warn_cut_prompts("score", text.tokenizers.front(), job.prompts);
  lpo::ParameterStore<float, Device> store;
  store.add("", *lrm);
  text.add_to(store);
  store.allocate_frozen();
  if constexpr (sdxl)
    lpo::load_latent_reward_model(job.reward_model, *lrm, store, std::tie(text.first, *text.second));
  else
    lpo::load_latent_reward_model(job.reward_model, *lrm, store, std::tie(text.first));
  if (const std::string name = lpo::first_non_finite_weight(store); !name.empty())
    throw lpo::FileError(lpo::message("[score] ", job.reward_model, ": weight \"", name,
                                      "\" holds NaN or an infinity, and so would every score"));

  const auto packed = examples::keep_packed(context, store, job.device);
  Scores scores;
  scores.prompts = job.prompts.size();
  scores.timesteps = job.timesteps.size();
  scores.values.assign(job.inputs.size() * scores.prompts * scores.timesteps, 0.0f);
  lpo::LatentScorer<Lrm> scorer(tape, *lrm, job.batch_size);
  // One noise for all inputs and timesteps: what differs between scores is not the noise.
  lpo::Tensor<float, 4> noise(lpo::Extents<4>{1, clean.extent(1), clean.extent(2), clean.extent(3)});
  lpo::Tensor<float, 4> noises(clean.extents()), noisy(clean.extents());
  std::vector<float> row(job.inputs.size());
  examples::ProgressBar bar;
  const int draws = job.noisy_latents ? 1 : job.noises;
  lpo::ProgressReporter reporter("score", 0, static_cast<index_t>(scores.prompts * scores.timesteps) * draws,
                                 std::ref(bar));
  index_t done = 0;
  for (int draw = 0; draw < draws; ++draw) {
    const std::uint64_t seed = job.seed + static_cast<std::uint64_t>(draw);
    lpo::TorchGenerator generator(seed);
    if (job.torch_noise)
      lpo::fill_torch_normal(host, noise.view(), generator);
    else
      lpo::fill_normal(host, noise.view(), {seed, lpo::random_operation::initial_latents, 0});
    for (index_t i = 0; i < noises.extent(0); ++i)
      std::copy(noise.data(), noise.data() + noise.size(), noises.data() + i * noise.size());
    for (std::size_t p = 0; p < scores.prompts; ++p) {
      const auto prompts =
          text.encode(tape, {job.prompts[p]}, "", lpo::EmptyPrompt::encoded, job.resolution, job.resolution);
      scorer.set_prompts(prompts);
      for (std::size_t t = 0; t < scores.timesteps; ++t) {
        const std::vector<int> timesteps(job.inputs.size(), job.timesteps[t]);
        if (!job.noisy_latents)
          lpo::add_noise<float, Cpu>(host, schedule, timesteps, clean.view(), noises.view(), noisy.view());
        const auto latents = lpo::to_device<Device>(job.noisy_latents ? clean : noisy);
        scorer.score(latents.view(), job.timesteps[t], row);
        for (std::size_t i = 0; i < row.size(); ++i) scores.at(i, p, t) += row[i] / static_cast<float>(draws);
        if (!reporter.report(++done)) throw lpo::CancelledError("[score] cancelled");
      }
    }
  }
  return scores;
}

}  // namespace score
