// SPDX-License-Identifier: MIT
// PredictedImages: the pictures that a diffusion model predicts from noisy latents, decoded and prepared for a CLIP
// tower.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <lpo/autograd/checkpoint.hpp>
#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/diffusion/prediction.hpp>
#include <lpo/model/autoencoder_kl.hpp>
#include <lpo/reward/clip_pixels.hpp>

namespace lpo::inline LPO_ABI {

/// Without gradients. Vae: an AutoencoderKL of any storage type; latents and pictures are float (double for double).
template <class Vae>
class PredictedImages {
 public:
  using Device = typename Vae::device;
  using Number = compute_t<typename Vae::value_type>;

  PredictedImages(Vae& vae, const NoiseSchedule& schedule) : vae_(vae), schedule_(schedule) {}

  /// latents, prediction [n, h, w, c], row i at timesteps[i] -> `pixels` [n, size, size, 3]. Timestep 0 stands for
  /// finished latents, whose prediction is not read.
  void prepare(Tape<Device>& tape, View<const Number, 4, Device> latents, View<const Number, 4, Device> prediction,
               std::span<const float> timesteps, const View<Number, 4, Device>& pixels) {
    const index_t n = latents.extent(0);
    if (static_cast<index_t>(timesteps.size()) != n || pixels.extent(0) != n)
      throw ShapeError(message("[PredictedImages] ", n, " latents, ", static_cast<index_t>(timesteps.size()),
                               " timesteps and room for ", pixels.extent(0), " pictures"));
    const auto guard = tape.inference();
    auto& context = tape.context();
    // One at a time: decoding takes more memory than denoising.
    for (index_t i = 0; i < n; ++i) {
      const auto start = tape.snapshot();
      const auto unscaled = make_output<typename Vae::value_type>(tape, latents.slice(0, i, i + 1).extents, false);
      const double scale = 1 / static_cast<double>(vae_.scaling_factor);
      const View<const Number, 4, Device> x = latents.slice(0, i, i + 1);
      const int timestep = static_cast<int>(timesteps[static_cast<std::size_t>(i)]);
      if (timestep <= 0) {
        evaluate(&context, unscaled.view(), scale * x);
      } else {
        const auto clean = clean_coefficients(schedule_.config().prediction_type, schedule_.alpha_bar(timestep));
        const View<const Number, 4, Device> y = prediction.slice(0, i, i + 1);
        evaluate(&context, unscaled.view(), (scale * clean.latent) * x + (scale * clean.output) * y);
      }
      const Var<typename Vae::value_type, 4, Device> decoded = vae_.decode(unscaled);
      const auto picture = make_output<Number>(tape, decoded.extents(), false);
      evaluate(&context, picture.view(), 1.0 * decoded);
      clip_pixels<Number>(context, picture.view(), pixels.slice(0, i, i + 1));
      tape.rewind(start);
    }
  }

 private:
  Vae& vae_;
  const NoiseSchedule& schedule_;
};

}  // namespace lpo::inline LPO_ABI
