// budget: 10 s, 1000 MB
// SPDX-License-Identifier: MIT
// One UNet of Stable Diffusion 1.5's shape, forward and backward.
#include <lpo/lpo.hpp>

void step(lpo::Context<lpo::Cpu>& context, lpo::UNet2DCondition<lpo::presets::sd15, float, lpo::Cpu>& unet,
          const lpo::Tensor<float, 4, lpo::Cpu>& latents, const lpo::Tensor<float, 3, lpo::Cpu>& text) {
  lpo::Tape<lpo::Cpu> tape(context);
  const float timesteps[] = {500.0f};
  const auto noise = unet(constant(tape, latents.view()), {timesteps, constant(tape, text.view()), {}, {}});  // [n, h, w, 4]
  const lpo::Var<float, 4, lpo::Cpu> squared = square(noise);
  backward(mean(squared));
}
