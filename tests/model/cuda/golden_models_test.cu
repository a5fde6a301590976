// SPDX-License-Identifier: MIT
// The networks on a CUDA device against diffusers and transformers: the same files and tolerances as on the CPU.
#include <doctest/doctest.h>

#include <lpo/cuda.cuh>

#include "model/autoencoder_kl_cases.hpp"
#include "model/clip_text_cases.hpp"
#include "model/unet_cases.hpp"

using lpo::Cuda;

TEST_CASE("UNets of three families equal diffusers on a CUDA device, forward and gradients") {
  unet_cases::check_family<golden::sd15, float, Cuda>("unet_sd15", 1e-5);
  unet_cases::check_family<golden::sd21, float, Cuda>("unet_sd21", 1e-5);
  unet_cases::check_family<golden::sdxl, float, Cuda>("unet_sdxl", 1e-5);
}
TEST_CASE("in double a UNet equals diffusers to the rounding of the file on a CUDA device") {
  unet_cases::check_family<golden::sdxl, double, Cuda>("unet_sdxl", 2e-7);
}
TEST_CASE("AutoencoderKL equals diffusers on a CUDA device") {
  autoencoder_kl_cases::check_against_diffusers<float, Cuda>(1e-5);
  autoencoder_kl_cases::check_against_diffusers<double, Cuda>(2e-7);
}
TEST_CASE("CLIP text encoders equal transformers on a CUDA device") {
  using namespace clip_text_cases;
  check_against_transformers<golden::quick_text, float, Cuda>("quick", -1, 1e-5);
  check_against_transformers<golden::gelu_text, float, Cuda>("gelu", 47, 1e-5);
}
