// SPDX-License-Identifier: MIT
// Captions to pictures with the tiny world's model, and pictures to latents.
#pragma once

#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tiny_model.hpp"
#include "world/image.hpp"

namespace tinyworld {

/// Pictures as a tensor in [-1, 1], [n, 32, 32, 3].
inline lpo::Tensor<float, 4> to_tensor(std::span<const Image> images) {
  lpo::Tensor<float, 4> tensor(lpo::Extents<4>{static_cast<lpo::index_t>(images.size()), image_size, image_size, 3});
  float* out = tensor.data();
  for (const Image& image : images)
    for (const float value : image.rgb) *out++ = 2 * value - 1;
  return tensor;
}

/// [n, 32, 32, 3] in [-1, 1] as pictures, limited to [0, 1].
inline std::vector<Image> to_images(const lpo::View<const float, 4, lpo::Cpu>& pixels) {
  std::vector<Image> images;
  const auto size = static_cast<std::size_t>(image_size * image_size * 3);
  for (lpo::index_t i = 0; i < pixels.extent(0); ++i) {
    Image image;
    image.rgb.resize(size);
    for (std::size_t k = 0; k < size; ++k)
      image.rgb[k] = std::clamp(0.5f * pixels.data[static_cast<std::size_t>(i) * size + k] + 0.5f, 0.0f, 1.0f);
    images.push_back(std::move(image));
  }
  return images;
}

/// Latents (scaled, [n, 8, 8, 4], on the host) to pictures.
inline std::vector<Image> decode_latents(lpo::Tape<Device>& tape, Vae& vae,
                                         const lpo::View<const float, 4, lpo::Cpu>& latents) {
  const auto guard = tape.inference();
  const auto start = tape.snapshot();
  const auto on_device = lpo::to_device<Device>(lpo::Tensor<float, 4>::copy_of(latents));
  const lpo::Var<float, 4, Device> unscaled =
      lpo::constant(tape, on_device) * (1.0 / static_cast<double>(vae.scaling_factor));
  const lpo::Var<float, 4, Device> decoded = vae.decode(unscaled);
  lpo::Tensor<float, 4> pixels(decoded.extents());
  tape.context().copy_to_host(pixels.data(), decoded.data(), static_cast<std::size_t>(pixels.size()) * sizeof(float));
  tape.rewind(start);
  return to_images(pixels.view());
}

struct GenerateOptions {
  int steps = 20;
  double guidance_scale = 4.0;
  double eta = 0.0;
  lpo::index_t batch = 64;
  bool adapters = true;     ///< with the LoRA, or the base model
  std::uint64_t seed = 42;  ///< picture i starts from the same noise whatever the batch and the adapters
};

/// One latent per caption (repeat a caption for several pictures), [n, 8, 8, 4], on the host.
inline lpo::Tensor<float, 4> generate_latents(lpo::Context<Device>& context, lpo::Tape<Device>& tape, UNet& unet, TextEncoder& text,
                                              const lpo::ClipTokenizer& tokenizer, const lpo::NoiseSchedule& schedule,
                                              const std::vector<std::string>& captions, const GenerateOptions& options,
                                              const std::function<bool(lpo::index_t, lpo::index_t)>& progress = {}) {
  const auto n = static_cast<lpo::index_t>(captions.size());
  lpo::Tensor<float, 4> latents(lpo::Extents<4>{n, latent_size, latent_size, latent_channels});
  const auto steps = lpo::ddim_steps(schedule, options.steps, options.eta);
  lpo::GuidedDenoiser<UNet> denoiser(tape, unet, options.guidance_scale);
  const lpo::Tape<Device>::ModeGuard mode(tape, false, options.adapters);
  for (lpo::index_t begin = 0; begin < n; begin += options.batch) {
    const lpo::index_t end = std::min(n, begin + options.batch);
    std::vector<std::int32_t> ids;
    for (lpo::index_t i = begin; i < end; ++i) {
      const auto row = tokenizer.encode(captions[static_cast<std::size_t>(i)]);
      ids.insert(ids.end(), row.begin(), row.end());
    }
    const auto prompts = lpo::encode_prompts<float>(tape, text, std::span<const std::int32_t>(ids), end - begin);
    denoiser.set_prompts(prompts);
    lpo::Tensor<float, 4, Device> part(lpo::Extents<4>{end - begin, latent_size, latent_size, latent_channels});
    const lpo::index_t first = begin * latent_extents.size();
    lpo::fill_normal(context, part.view(), {options.seed, lpo::random_operation::initial_latents, 0},
                     static_cast<std::uint64_t>(first));
    lpo::sample(context, std::span<const lpo::GaussianStep>(steps), denoiser, part.view(),
                options.seed + static_cast<std::uint64_t>(begin));
    context.copy_to_host(latents.data() + first, part.data(), static_cast<std::size_t>(part.size()) * sizeof(float));
    if (progress && !progress(end, n)) throw lpo::CancelledError("[generate] cancelled");
  }
  return latents;
}

}  // namespace tinyworld
