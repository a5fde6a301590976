// SPDX-License-Identifier: MIT
// The stage that makes preference data: pictures are drawn, measured, and compared by simulated raters.
#include <lpo/io/json.hpp>
#include <lpo/io/safetensors.hpp>
#include <lpo/reward/mpcf.hpp>

#include "../world/rater.hpp"
#include "stages.hpp"

namespace demo {

namespace {

/// How a picture of a rated set is sampled. Preference data comes from many settings of a model; the spread of quality within a
/// caption is what a reward model learns from. Guidance 0 does not read the caption at all, guidance 8 overdoes it.
struct SamplerSetting {
  std::vector<double> guidance;  ///< caption i takes entry i modulo their number
  double eta;
  int steps;
};

const std::vector<SamplerSetting>& sampler_settings() {
  static const std::vector<SamplerSetting> settings{
      {{2, 3}, 0.0, 10}, {{3, 5}, 1.0, 10}, {{0.5, 1}, 0.0, 8}, {{0, 8}, 0.0, 5}};
  return settings;
}

/// Pictures of all settings: row i * settings + k is caption i under setting k.
lpo::Tensor<float, 4> draw(Studio& studio, const Options& o, const std::vector<std::string>& captions, tw::Split split,
                           const std::string& stage) {
  const auto& settings = sampler_settings();
  const auto count = static_cast<index_t>(captions.size()), copies = static_cast<index_t>(settings.size());
  const index_t size = tw::latent_extents.size();
  lpo::Tensor<float, 4> latents(lpo::Extents<4>{count * copies, tw::latent_size, tw::latent_size, tw::latent_channels});
  lpo::ProgressReporter reporter(stage, 0, count * copies, std::ref(studio.bar));
  index_t done = 0;
  for (std::size_t k = 0; k < settings.size(); ++k) {
    const auto& setting = settings[k];
    const std::size_t stride = setting.guidance.size();
    for (std::size_t j = 0; j < stride; ++j) {
      std::vector<std::string> part;
      for (std::size_t i = j; i < captions.size(); i += stride) part.push_back(captions[i]);
      tw::GenerateOptions options;
      options.guidance_scale = setting.guidance[j];
      options.eta = setting.eta;
      options.steps = setting.steps;
      options.adapters = false;
      options.seed = o.seed + (split == tw::Split::train ? 200 : 300) + 16 * k + j;
      const auto made = studio.generate(part, options, [&](index_t n) { return reporter.report(done + n); });
      done += static_cast<index_t>(part.size());
      for (std::size_t i = 0; i < part.size(); ++i)
        std::copy_n(made.data() + static_cast<index_t>(i) * size, size,
                    latents.data() + (static_cast<index_t>(j + i * stride) * copies + static_cast<index_t>(k)) * size);
    }
  }
  return latents;
}

/// What the pictures depend on: saved ones are taken up again only if this is the same.
std::string recipe(const Options& o, index_t count) {
  lpo::OrderedJson json{{"model", o.model}, {"seed", o.seed}, {"captions", count}};
  for (const auto& setting : sampler_settings()) json["settings"].push_back({setting.guidance, setting.eta, setting.steps});
  return json.dump();
}

/// The pictures of an interrupted run, or new ones, which are kept for the next.
lpo::Tensor<float, 4> draw_or_resume(Studio& studio, const Options& o, const std::vector<std::string>& captions, tw::Split split) {
  const bool training = split == tw::Split::train;
  const std::string path = o.out + (training ? "/rated_pictures.safetensors" : "/held_out_pictures.safetensors");
  const std::string made_from = recipe(o, static_cast<index_t>(captions.size()));
  if (o.resume && lpo::file_exists(path)) {
    const lpo::SafetensorsFile file(path);
    const auto found = file.metadata().find("recipe");
    if (found != file.metadata().end() && found->second == made_from) {
      const auto shape = file.info("latents").shape;
      lpo::Tensor<float, 4> latents(lpo::Extents<4>{shape.at(0), tw::latent_size, tw::latent_size, tw::latent_channels});
      file.read("latents", latents.data(), latents.size());
      return latents;
    }
  }
  auto latents = draw(studio, o, captions, split, training ? "rated pairs" : "held-out pairs");
  lpo::SafetensorsWriter writer;
  writer.set_metadata("recipe", made_from);
  writer.add("latents", lpo::DType::F32, {latents.extent(0), tw::latent_size, tw::latent_size, tw::latent_channels}, latents.data());
  writer.write(path);
  return latents;
}

}  // namespace

MeasuredPictures draw_pictures(Studio& studio, const Options& o, tw::Split split) {
  MeasuredPictures pictures;
  pictures.captions = sample_captions(o.seed + 100, split == tw::Split::train ? o.rated_captions : o.held_out_captions, split);
  pictures.latents = draw_or_resume(studio, o, pictures.captions, split);
  pictures.measured =
      studio.measure(pictures.latents, repeat_captions(pictures.captions, static_cast<index_t>(sampler_settings().size())));
  return pictures;
}

RatedPairs rate(const Studio& studio, const Options& o, const MeasuredPictures& pictures, tw::Split split) {
  const auto& captions = pictures.captions;
  const auto& measured = pictures.measured;
  RatedPairs result;
  auto& data = result.latents;
  data.height = tw::latent_size, data.width = tw::latent_size, data.channels = tw::latent_channels;
  data.tokens = tw::text_config.positions;
  const auto copies = static_cast<index_t>(sampler_settings().size());
  const tw::RaterOptions raters{.temperature = static_cast<float>(o.rater_temperature)};
  for (std::size_t i = 0; i < captions.size(); ++i) {
    const index_t prompt = data.add_prompt(studio.generator.tokenizer.encode(captions[i]));
    const index_t first_image = data.images();
    for (index_t k = 0; k < copies; ++k) data.add_image(prompt, pictures.latents.data() + (first_image + k) * data.latent_size());
    for (index_t a = first_image; a < first_image + copies; ++a) {
      for (index_t b = a + 1; b < first_image + copies; ++b) {
        const auto& first = measured[static_cast<std::size_t>(a)];
        const auto& second = measured[static_cast<std::size_t>(b)];
        const auto rating = tw::rate_pair(first, second, o.seed + 400, static_cast<std::uint64_t>(a * copies + b - first_image), raters);
        ++result.rated;
        if (!rating.is_tie()) {
          ++result.decided;
          result.agreed += (first.score > second.score) == (rating.label_0 > rating.label_1) ? 1 : 0;
        }
        const lpo::PreferenceGaps gaps{rating.aesthetic_gap, rating.clipscore_gap, rating.vqascore_gap};
        const bool kept = split == tw::Split::train ? lpo::mpcf_keeps(gaps, rating.is_tie(), {.strategy = o.mpcf_strategy}) : !rating.is_tie();
        if (kept) data.add_pair(a, b, {rating.label_0, rating.label_1, 1.0f, false});
      }
    }
  }
  return result;
}

RatedPairs rate_pairs(Studio& studio, const Options& o, tw::Split split) {
  return rate(studio, o, draw_pictures(studio, o, split), split);
}

}  // namespace demo
