// SPDX-License-Identifier: MIT
// Draws, decodes and measures with the generator.
#include "studio.hpp"

namespace demo {

std::vector<std::string> sample_captions(std::uint64_t seed, index_t count, tw::Split split) {
  std::vector<std::string> captions;
  for (index_t i = 0; i < count; ++i) captions.push_back(tw::sample_captioned(seed, static_cast<std::uint64_t>(i), split).caption);
  return captions;
}

std::vector<std::string> repeat_captions(const std::vector<std::string>& captions, index_t copies) {
  std::vector<std::string> repeated;
  for (const auto& caption : captions) repeated.insert(repeated.end(), static_cast<std::size_t>(copies), caption);
  return repeated;
}

Studio::Studio(const Options& o)
    : executor(o.threads),
      context(examples::make_context(o.threads)),
      tape(context),
      generator(o.model, o.lora_rank, o.seed) {}

lpo::Tensor<float, 4> Studio::generate(const std::vector<std::string>& captions, const tw::GenerateOptions& options,
                                       const std::function<bool(index_t)>& progress) {
  return tw::generate_latents(context, tape, generator.unet, generator.text_encoder, generator.tokenizer, generator.schedule, captions,
                              options, [&](index_t done, index_t) { return progress(done); });
}

std::vector<tw::Image> Studio::decode(const lpo::View<const float, 4, lpo::Cpu>& latents) {
  std::vector<tw::Image> images;
  constexpr index_t chunk = 64;
  for (index_t begin = 0; begin < latents.extent(0); begin += chunk) {
    auto part = tw::decode_latents(tape, generator.vae, latents.slice(0, begin, std::min(latents.extent(0), begin + chunk)));
    std::move(part.begin(), part.end(), std::back_inserter(images));
  }
  return images;
}

std::vector<tw::Measurement> Studio::measure(std::span<const tw::Image> images, std::span<const std::string> captions) {
  std::vector<tw::Measurement> measured(images.size());
  executor.parallel_for(static_cast<index_t>(images.size()), 4, [&](index_t first, index_t last) {
    for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i)
      measured[i] = tw::score_image(images[i], captions[i]);
  });
  return measured;
}

std::vector<tw::Measurement> Studio::measure(const lpo::Tensor<float, 4>& latents, const std::vector<std::string>& captions) {
  std::vector<tw::Measurement> measured;
  constexpr index_t chunk = 64;
  for (index_t begin = 0; begin < latents.extent(0); begin += chunk) {
    const auto images = decode(latents.view().slice(0, begin, std::min(latents.extent(0), begin + chunk)));
    const auto part = measure(images, std::span(captions).subspan(static_cast<std::size_t>(begin), images.size()));
    measured.insert(measured.end(), part.begin(), part.end());
  }
  return measured;
}

}  // namespace demo
