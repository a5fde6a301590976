// SPDX-License-Identifier: MIT
// From a job to pictures with a model of one family: read, encode prompts, denoise, decode.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <lpo/diffusion/torch_noise.hpp>
#include <lpo/io/lora.hpp>
#include <lpo/lpo.hpp>

#include "../common/console.hpp"
#include "../common/text_side.hpp"
#include "pipelines.hpp"

namespace txt2img {

using lpo::Cpu, lpo::index_t;

/// A model in memory.
template <const examples::ModelFamily& F>
struct Model {
  examples::TextSide<F> text;
  lpo::UNet2DCondition<F.unet, float, Cpu> unet;
  lpo::AutoencoderKL<F.vae, float, Cpu> vae;
  lpo::ParameterStore<float, Cpu> store;

  explicit Model(const Job& job) : text(job.model) {
    text.add_to(store);
    store.add("unet", unet);
    store.add("vae", vae);
    store.allocate_frozen();
    lpo::load_text_encoder(job.model + "/text_encoder", text.first, store, "text_encoder", job.variant);
    if (text.second)
      lpo::load_text_encoder(job.model + "/text_encoder_2", *text.second, store, "text_encoder_2", job.variant);
    lpo::load_unet(job.model + "/unet", unet, store, "unet", job.variant);
    lpo::load_vae(job.model + "/vae", vae, store, "vae", job.variant);
    for (const Lora& lora : job.loras) merge(lora);
  }

 private:
  /// Adds a LoRA to the weights of every part that the file adapts.
  void merge(const Lora& lora) {
    const lpo::LoraFile file(lora.path, F.unet.layers_per_block);
    std::set<std::string> parts;
    for (const auto* adapter : file.adapters()) parts.insert(adapter->component);
    for (const std::string& part : parts) {
      const bool known = part == "unet" || part == "text_encoder" || (part == "text_encoder_2" && text.second);
      if (!known)
        throw lpo::FileError(
            lpo::message("[txt2img] ", lora.path, ": adapts \"", part, "\", which this model does not have"));
      lpo::merge_lora(file, store, part, lora.scale, part);
    }
  }
};

/// One picture that is asked for.
struct Request {
  std::string prompt;
  std::uint64_t seed;
};

/// Noise of one picture: its own generator, so that a picture does not depend on the others of its batch.
class PictureNoise {
 public:
  PictureNoise(std::uint64_t seed, bool torch) : seed_(seed), torch_(torch), generator_(seed) {}

  void initial(lpo::Context<Cpu>& context, const lpo::View<float, 4, Cpu>& row) {
    fill(context, row, lpo::random_operation::initial_latents, 0);
  }
  void step(lpo::Context<Cpu>& context, const lpo::View<float, 4, Cpu>& row, int step) {
    fill(context, row, lpo::random_operation::sampling_noise, static_cast<std::uint32_t>(step));
  }

 private:
  void fill(lpo::Context<Cpu>& context, const lpo::View<float, 4, Cpu>& row, std::uint32_t operation,
            std::uint32_t step) {
    if (torch_)
      lpo::fill_torch_normal(context, row, generator_);
    else
      lpo::fill_normal(context, row, {seed_, operation, step});
  }

  std::uint64_t seed_;
  bool torch_;
  lpo::TorchGenerator generator_;
};

/// Latents [n, h, w, c] to pictures, one at a time: decoding takes more memory than denoising.
template <const examples::ModelFamily& F>
std::vector<lpo::RgbImage> decode(lpo::Tape<Cpu>& tape, Model<F>& model, const lpo::View<float, 4, Cpu>& latents) {
  std::vector<lpo::RgbImage> images;
  const auto guard = tape.inference();
  for (index_t i = 0; i < latents.extent(0); ++i) {
    const auto start = tape.snapshot();
    const lpo::View<const float, 4, Cpu> row = latents.slice(0, i, i + 1);
    const lpo::Var<float, 4, Cpu> unscaled =
        lpo::constant(tape, row) * (1.0 / static_cast<double>(model.vae.scaling_factor));
    const lpo::Var<float, 4, Cpu> pixels = model.vae.decode(unscaled);
    images.push_back(
        lpo::image_of_values(pixels.data(), static_cast<int>(pixels.extent(2)), static_cast<int>(pixels.extent(1))));
    tape.rewind(start);
  }
  return images;
}

template <const examples::ModelFamily& F>
void generate(const Job& job, PictureWriter& writer) {
  lpo::Context<Cpu> context(job.threads);
  lpo::Tape<Cpu> tape(context);
  std::fprintf(stderr, "reading %s\n", job.model.c_str());
  const auto model = std::make_unique<Model<F>>(job);
  const lpo::NoiseSchedule schedule(job.schedule);
  const lpo::Sampler sampler(schedule, job.schedule.sampler, job.steps, job.eta);

  std::vector<Request> requests;
  for (const std::string& prompt : job.prompts)
    for (int i = 0; i < job.images_per_prompt; ++i)
      requests.push_back({prompt, job.seed + static_cast<std::uint64_t>(i)});
  const std::size_t batch = static_cast<std::size_t>(job.batch_size), batches = (requests.size() + batch - 1) / batch;
  const auto steps = static_cast<index_t>(sampler.steps().size());
  examples::ProgressBar bar;
  lpo::ProgressReporter reporter("denoise", 0, static_cast<index_t>(batches) * steps, std::ref(bar));
  index_t steps_done = 0;

  lpo::GuidedDenoiser<decltype(model->unet)> denoiser(tape, model->unet, job.guidance_scale, job.guidance_rescale);
  for (std::size_t begin = 0; begin < requests.size(); begin += batch) {
    const std::size_t end = std::min(requests.size(), begin + batch);
    std::vector<std::string> prompts;
    std::vector<PictureNoise> noise;
    for (std::size_t i = begin; i < end; ++i) {
      prompts.push_back(requests[i].prompt);
      noise.emplace_back(requests[i].seed, job.torch_noise);
    }
    const auto states = model->text.encode(tape, prompts, job.negative_prompt,
                                           job.zeros_for_empty ? lpo::EmptyPrompt::zeros : lpo::EmptyPrompt::encoded,
                                           job.height, job.width);
    denoiser.set_prompts(states);
    lpo::Tensor<float, 4> latents(lpo::Extents<4>{static_cast<index_t>(end - begin), job.height / F.vae.factor(),
                                                  job.width / F.vae.factor(), F.unet.in_channels});
    const auto each_row = [&](const lpo::View<float, 4, Cpu>& rows, const auto& fill) {
      for (std::size_t i = 0; i < noise.size(); ++i)
        fill(noise[i], rows.slice(0, static_cast<index_t>(i), static_cast<index_t>(i) + 1));
    };
    each_row(latents.view(), [&](PictureNoise& one, const auto& row) { one.initial(context, row); });
    lpo::sample(
        context, sampler, denoiser, latents.view(),
        [&](int step, const lpo::View<float, 4, Cpu>& z) {
          each_row(z, [&](PictureNoise& one, const auto& row) { one.step(context, row, step); });
        },
        [&](int, int) { return reporter.report(++steps_done); });
    auto images = decode(tape, *model, latents.view());
    for (std::size_t i = 0; i < images.size(); ++i) {
      const Request& request = requests[begin + i];
      std::printf("%s\n", writer.write(std::move(images[i]), request.prompt, request.seed).c_str());
      std::fflush(stdout);
    }
  }
}

}  // namespace txt2img
