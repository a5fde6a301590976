// SPDX-License-Identifier: MIT
// From a job to pictures with a model of one family: read, encode prompts, denoise, decode.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <lpo/io/lora.hpp>
#include <lpo/train/finite_guard.hpp>

#include "../common/console.hpp"
#include "../common/drawing.hpp"
#include "../common/text_side.hpp"
#include "pipelines.hpp"

namespace txt2img {

using examples::Device, lpo::index_t;

/// A model in memory.
template <const examples::ModelFamily& F, class T>
struct Model {
  using V = examples::VaeStorage<F, T>;

  examples::TextSide<F, T> text;
  lpo::UNet2DCondition<F.unet, T, Device> unet;
  lpo::AutoencoderKL<F.vae, V, Device> vae;
  lpo::ParameterStore<T, Device> store;
  lpo::ParameterStore<V, Device> vae_store;

  explicit Model(const Job& job) : text(job.model.tokenizers(F)) {
    text.add_to(store);
    store.add("unet", unet);
    vae_store.add("vae", vae);
    store.allocate_frozen();
    vae_store.allocate_frozen();
    job.model.load_text_encoder(text.first, store, 0);
    if (text.second) job.model.load_text_encoder(*text.second, store, 1);
    job.model.load_unet(unet, store);
    job.model.load_vae(vae, vae_store);
    warn_non_finite("of the model");
    for (const Lora& lora : job.loras) merge(lora);
    if (!job.loras.empty()) warn_non_finite("with the LoRA");
  }

 private:
  /// Pictures of such weights are black, and nothing else would say why. Once is enough.
  void warn_non_finite(const char* when) {
    std::string name = lpo::first_non_finite_weight(store);
    if (name.empty()) name = lpo::first_non_finite_weight(vae_store);
    if (name.empty() || warned_) return;
    warned_ = true;
    std::fprintf(stderr, "txt2img: warning: weight \"%s\" %s holds NaN or an infinity; expect no picture\n", name.c_str(),
                 when);
  }

  /// Adds a LoRA to the weights of every part that the file adapts.
  void merge(const Lora& lora) {
    const lpo::LoraFile file(lora.path, F.unet.layers_per_block);
    std::set<std::string> parts, unmatched;
    for (const auto* adapter : file.adapters()) parts.insert(adapter->component);
    for (const std::string& part : parts) {
      const bool known = part == "unet" || part == "text_encoder" || (part == "text_encoder_2" && text.second);
      if (!known)
        throw lpo::FileError(
            lpo::message("[txt2img] ", lora.path, ": adapts \"", part, "\", which this model does not have"));
      const auto report = lpo::merge_lora(file, store, part, lora.scale, part);
      const std::set<std::string> keys(report.unmatched.begin(), report.unmatched.end());
      if (part == *parts.begin())
        unmatched = keys;
      else  // a key that no part has a weight for
        std::erase_if(unmatched, [&](const std::string& key) { return !keys.contains(key); });
    }
    if (!unmatched.empty())
      std::fprintf(stderr, "txt2img: warning: %zu keys of %s find no weight in the model: %s\n", unmatched.size(),
                   lora.path.c_str(), lpo::detail::listed({unmatched.begin(), unmatched.end()}).c_str());
  }

  bool warned_ = false;
};

/// One picture that is asked for.
struct Request {
  std::string prompt;
  std::uint64_t seed;
};

template <const examples::ModelFamily& F, class T>
void generate(const Job& job, PictureWriter& writer) {
  auto context = examples::make_context(job.threads, job.device);
  lpo::Tape<Device> tape(context);
  std::fprintf(stderr, "reading %s\n", job.model.path().c_str());
  const auto model = std::make_unique<Model<F, T>>(job);
  const auto packed = examples::keep_packed(context, model->store, job.device);
  const auto packed_vae = examples::keep_packed(context, model->vae_store, job.device);
  examples::warn_cut_prompts("txt2img", model->text.tokenizers.front(), job.prompts);
  examples::warn_cut_prompts("txt2img", model->text.tokenizers.front(), {job.negative_prompt});
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

  lpo::GuidedDenoiser<decltype(model->unet)> guided(tape, model->unet, job.guidance_scale, job.guidance_rescale);
  const auto empty = job.model.zeros_for_empty_prompt() ? lpo::EmptyPrompt::zeros : lpo::EmptyPrompt::encoded;
  for (std::size_t begin = 0; begin < requests.size(); begin += batch) {
    const std::size_t end = std::min(requests.size(), begin + batch);
    std::vector<std::string> prompts;
    std::vector<examples::PictureNoise> noise;
    for (std::size_t i = begin; i < end; ++i) {
      prompts.push_back(requests[i].prompt);
      noise.emplace_back(requests[i].seed, job.torch_noise);
    }
    const auto states = model->text.encode(tape, prompts, job.negative_prompt, empty, job.height, job.width);
    guided.set_prompts(states);
    lpo::Tensor<float, 4, Device> latents(lpo::Extents<4>{static_cast<index_t>(end - begin), job.height / F.vae.factor(),
                                                  job.width / F.vae.factor(), F.unet.in_channels});
    const auto each_row = [&](const lpo::View<float, 4, Device>& rows, const auto& fill) {
      for (std::size_t i = 0; i < noise.size(); ++i)
        fill(noise[i], rows.slice(0, static_cast<index_t>(i), static_cast<index_t>(i) + 1));
    };
    each_row(latents.view(), [&](examples::PictureNoise& one, const auto& row) { one.initial(context, row); });
    lpo::sample(
        context, sampler, guided, latents.view(),
        [&](int step, const lpo::View<float, 4, Device>& z) {
          each_row(z, [&](examples::PictureNoise& one, const auto& row) { one.step(context, row, step); });
        },
        [&](int, int) { return reporter.report(++steps_done); });
    auto images = examples::decode_latents(tape, model->vae, latents.view());
    for (std::size_t i = 0; i < images.size(); ++i) {
      const Request& request = requests[begin + i];
      std::printf("%s\n", writer.write(std::move(images[i]), request.prompt, request.seed).c_str());
      std::fflush(stdout);
    }
  }
}

}  // namespace txt2img
