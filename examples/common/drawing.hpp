// SPDX-License-Identifier: MIT
// What programs that draw pictures share: the noise of a picture, latents to pictures.
#pragma once

#include <cstdint>
#include <vector>

#include <lpo/diffusion/torch_noise.hpp>
#include <lpo/io/image.hpp>

#include "device.hpp"

namespace examples {

using lpo::index_t;

/// Noise of one picture: its own generator, so that a picture does not depend on the others of its batch.
class PictureNoise {
 public:
  PictureNoise(std::uint64_t seed, bool torch) : seed_(seed), torch_(torch), generator_(seed) {}

  void initial(lpo::Context<Device>& context, const lpo::View<float, 4, Device>& row) {
    fill(context, row, lpo::random_operation::initial_latents, 0);
  }
  void step(lpo::Context<Device>& context, const lpo::View<float, 4, Device>& row, int step) {
    fill(context, row, lpo::random_operation::sampling_noise, static_cast<std::uint32_t>(step));
  }

 private:
  void fill(lpo::Context<Device>& context, const lpo::View<float, 4, Device>& row, std::uint32_t operation,
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
template <class Vae>
std::vector<lpo::RgbImage> decode_latents(lpo::Tape<Device>& tape, Vae& vae, const lpo::View<float, 4, Device>& latents) {
  using V = typename Vae::value_type;
  std::vector<lpo::RgbImage> images;
  const auto guard = tape.inference();
  for (index_t i = 0; i < latents.extent(0); ++i) {
    const auto start = tape.snapshot();
    const lpo::View<const float, 4, Device> row = latents.slice(0, i, i + 1);
    const lpo::Var<V, 4, Device> unscaled = lpo::constant(tape, row) * (1.0 / static_cast<double>(vae.scaling_factor));
    const lpo::Var<V, 4, Device> decoded = vae.decode(unscaled);
    const lpo::Tensor<float, 4, Device> there = 1.0 * decoded.view();
    const auto pixels = lpo::to_device<lpo::Cpu>(there);
    images.push_back(
        lpo::image_of_values(pixels.data(), static_cast<int>(pixels.extent(2)), static_cast<int>(pixels.extent(1))));
    tape.rewind(start);
  }
  return images;
}

}  // namespace examples
