// SPDX-License-Identifier: MIT
// PredictedImageModel: a step-aware preference model behind a frozen generator, as LrmTrainer trains reward models.
#pragma once

#include <cstdint>
#include <span>

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
  static_assert(config.addition_width == 0,
                "lpo PredictedImageModel: generators with pooled text of their own (SDXL) are not trained with");

  Parameter<T, 1, Device>& logit_scale;
  RewardFeatureOptions options;  ///< `guidance` is the generator's

  PredictedImageModel(UNet& unet, Vae& vae, Preference& preference, const NoiseSchedule& schedule,
                      double guidance_scale)
      : logit_scale(preference.logit_scale), unet_(unet), preference_(preference), images_(vae, schedule) {
    options.guidance = static_cast<float>(guidance_scale);
  }

  /// Embeddings of the predicted pictures. What LrmTrainer encodes with PreferenceTextEncoder are the generator's
  /// states.
  Var<T, 2, Device> visual(const Var<T, 4, Device>& latents, std::span<const float> timesteps,
                           const RewardPrompt<T, Device>& prompt) {
    auto& tape = latents.tape();
    const index_t n = latents.extent(0);
    constexpr index_t size = Preference::vision_config.image_size;
    const auto pixels = make_output<T>(tape, Extents<4>{n, size, size, 3}, false);
    {
      const auto guard = tape.inference();
      const auto start = tape.snapshot();
      const bool guided = options.guidance != 1.0f;
      const UNetCondition<T, Device> condition{
          timesteps, guided ? concat_batch(prompt.context_empty, prompt.context) : prompt.context, {}, {}};
      const Var<T, 4, Device> output = unet_(latents, condition);
      const auto prediction = make_output<T>(tape, latents.extents(), false);
      if (guided)
        evaluate(&tape.context(), prediction.view(), guided_rows(output.view(), static_cast<double>(options.guidance)));
      else
        evaluate(&tape.context(), prediction.view(), 1.0 * output.view());
      images_.prepare(tape, latents.view(), prediction.view(), timesteps, pixels.view());
      tape.rewind(start);
    }
    return preference_.visual(pixels, timesteps);
  }

  Var<T, 2, Device> text(const Var<T, 2, Device>& pooled) { return pooled; }

 private:
  UNet& unet_;
  Preference& preference_;
  PredictedImages<Vae> images_;
};

/// The TextEncoder that goes with it: the generator's states as context, the preference model's embedding as pooled
/// text. Both read the same ids.
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
    states.pooled = preference_.text(tape, ids, n);
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
