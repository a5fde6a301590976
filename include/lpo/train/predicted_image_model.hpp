// SPDX-License-Identifier: MIT
// PredictedImageModel: a step-aware preference model behind a frozen generator, as LrmTrainer trains reward models.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <lpo/autograd/concat.hpp>
#include <lpo/diffusion/guidance.hpp>
#include <lpo/reward/latent_reward_model.hpp>
#include <lpo/reward/step_aware_preference_model.hpp>
#include <lpo/train/predicted_images.hpp>
#include <lpo/train/text_states.hpp>

namespace lpo::inline LPO_ABI {

/// What LrmTrainer calls a reward model. Noisy latents go through the generator under guidance and its autoencoder,
/// both frozen; the picture that they predict goes to the preference model, which trains. Source: arXiv 2406.04314.
template <class UNet, class Vae, class Preference>
class PredictedImageModel {
 public:
  using T = typename Preference::value_type;
  using value_type = T;
  using Device = typename Preference::device;
  using device = Device;
  static constexpr UNetConfig config = UNet::config;
  static constexpr index_t picture_size = Preference::vision_config.image_size;
  static constexpr int time_frequencies = Preference::frequencies;
  /// Of the generator's own pooled text (SDXL), which stands before the preference model's in what
  /// PreferenceTextEncoder gives as pooled text.
  static constexpr int generator_text = config.addition_width > 0 ? config.addition_width - 6 * config.addition_time_width : 0;

  Parameter<T, 1, Device>& logit_scale;
  RewardFeatureOptions options;  ///< `guidance` is the generator's

  PredictedImageModel(UNet& unet, Vae& vae, Preference& preference, const NoiseSchedule& schedule,
                      double guidance_scale)
      : logit_scale(preference.logit_scale), unet_(unet), preference_(preference), images_(vae, schedule) {
    options.guidance = static_cast<float>(guidance_scale);
  }

  /// The pictures that the generator predicts, without gradients: `latents` [n, h, w, c] -> `pixels` [n, picture_size,
  /// picture_size, 3]. What LrmTrainer encodes with PreferenceTextEncoder are the generator's states.
  void predict(const Var<T, 4, Device>& latents, std::span<const float> timesteps,
               const RewardPrompt<T, Device>& prompt, const View<T, 4, Device>& pixels) {
    auto& tape = latents.tape();
    const auto guard = tape.inference();
    const auto start = tape.snapshot();
    const bool guided = options.guidance != 1.0f;
    UNetCondition<T, Device> condition{
        timesteps, guided ? concat_batch(prompt.context_empty, prompt.context) : prompt.context, {}, {}};
    std::vector<float> time_ids(prompt.time_ids.begin(), prompt.time_ids.end());
    if constexpr (generator_text > 0) {
      const auto own = [](const auto& pooled) { return contiguous(pooled.slice(1, 0, generator_text)); };
      const auto text = own(prompt.text_embedding);
      condition.text_embedding = guided ? concat_batch(own(prompt.text_embedding_empty), text) : text;
      if (guided) time_ids.insert(time_ids.end(), prompt.time_ids.begin(), prompt.time_ids.end());
      condition.time_ids = time_ids;
    }
    const Var<T, 4, Device> output = unet_(latents, condition);
    const auto prediction = make_output<T>(tape, latents.extents(), false);
    if (guided)
      evaluate(&tape.context(), prediction.view(), guided_rows(output.view(), static_cast<double>(options.guidance)));
    else
      evaluate(&tape.context(), prediction.view(), 1.0 * output.view());
    images_.prepare(tape, latents.view(), prediction.view(), timesteps, pixels);
    tape.rewind(start);
  }

  /// Embeddings of such pictures; sinusoidal_features of their timesteps [n, time_frequencies].
  Var<T, 2, Device> visual(const Var<T, 4, Device>& pixels, const Var<T, 2, Device>& time_features) {
    return preference_.visual(pixels, time_features);
  }

  /// Both: embeddings of the predicted pictures.
  Var<T, 2, Device> visual(const Var<T, 4, Device>& latents, std::span<const float> timesteps,
                           const RewardPrompt<T, Device>& prompt) {
    auto& tape = latents.tape();
    const auto pixels = make_output<T>(tape, Extents<4>{latents.extent(0), picture_size, picture_size, 3}, false);
    predict(latents, timesteps, prompt, pixels.view());
    return preference_.visual(pixels, timesteps);
  }

  /// The preference model's part of the pooled text.
  Var<T, 2, Device> text(const Var<T, 2, Device>& pooled) {
    if constexpr (generator_text > 0)
      return contiguous(Var<T, 2, Device>(pooled.slice(1, generator_text, pooled.extent(1))));
    else
      return pooled;
  }

 private:
  UNet& unet_;
  Preference& preference_;
  PredictedImages<Vae> images_;
};

/// The TextEncoder that goes with it: the generator's states as context, the preference model's embedding as pooled
/// text, behind the generator's own where it has one (SDXL). Both read the same ids; of SDXL's two lists of a prompt the
/// preference model reads the first, which pads with the end of the text as its own tokenizer does.
template <class GeneratorText, class Preference>
class PreferenceTextEncoder {
 public:
  using T = typename Preference::value_type;
  using Device = typename Preference::device;

  PreferenceTextEncoder(GeneratorText& generator, Preference& preference)
      : generator_(generator), preference_(preference) {}

  TextStates<T, Device> encode(Tape<Device>& tape, std::span<const std::int32_t> ids, index_t n) {
    auto states = [&] {
      const auto guard = tape.inference();
      return generator_.encode(tape, ids, n);
    }();
    if (states.time_ids.empty()) {
      states.pooled = preference_.text(tape, ids, n);
    } else {
      const std::size_t row = ids.size() / static_cast<std::size_t>(n);
      std::vector<std::int32_t> first;
      for (std::size_t at = 0; at < ids.size(); at += row)
        first.insert(first.end(), ids.begin() + static_cast<std::ptrdiff_t>(at),
                     ids.begin() + static_cast<std::ptrdiff_t>(at + row / 2));
      states.pooled = concat_channels(states.pooled, preference_.text(tape, first, n));
    }
    return states;
  }
  /// The preference model needs no empty prompt.
  TextStates<T, Device> encode_empty(Tape<Device>& tape) {
    const auto guard = tape.inference();
    return generator_.encode_empty(tape);
  }

 private:
  GeneratorText& generator_;
  Preference& preference_;
};

}  // namespace lpo::inline LPO_ABI
