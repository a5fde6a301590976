// SPDX-License-Identifier: MIT
// UNet2DCondition against diffusers: outputs, residuals and all gradients of three families; LoRA, half UNet, odd
// sizes.
#include "model_backends.hpp"
#include "unet_cases.hpp"

using namespace unet_cases;

TEST_CASE("UNet of SD1.5's shape equals diffusers, forward and gradients") {
  check_family<golden::sd15, float, Cpu>("unet_sd15", 1e-5);
}
TEST_CASE("UNet of SD2.1's shape equals diffusers, forward and gradients") {
  check_family<golden::sd21, float, Cpu>("unet_sd21", 1e-5);
}
TEST_CASE("UNet of SDXL's shape equals diffusers, forward and gradients") {
  check_family<golden::sdxl, float, Cpu>("unet_sdxl", 1e-5);
}
TEST_CASE("in double the UNet equals diffusers to the rounding of the file") {
  // The files hold float64 results rounded to float32, and the timesteps' angles are exact on both sides.
  check_family<golden::sdxl, double, Reference>("unet_sdxl", 2e-7);
}
