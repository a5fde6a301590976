// SPDX-License-Identifier: MIT
// AutoencoderKL against diffusers: posterior, decoded image and gradients of both; sampling; inference equals
// recording.
#include <doctest/doctest.h>

#include <cstring>

#include "autoencoder_kl_cases.hpp"
#include "model_backends.hpp"
#include "model_goldens.hpp"

using namespace autoencoder_kl_cases;

TEST_CASE("AutoencoderKL equals diffusers, forward and gradients") { check_against_diffusers<float, Cpu>(1e-5); }
TEST_CASE("in double AutoencoderKL equals diffusers to the rounding of the file") {
  check_against_diffusers<double, Reference>(2e-7);
}

TEST_CASE("inference frees temporaries and returns the same bits") {
  Small<float, Cpu> model;
  auto image = golden::tensor<float, 4, Cpu>(model.file, "in/image");
  Context<Cpu> context(2);
  Tape<Cpu> tape(context);
  const auto recorded = model.vae->encode(constant(tape, image));
  const auto mean = Tensor<float, 4, Cpu>::copy_of(recorded.mean.view());
  const auto decoded = model.vae->decode(recorded.mean);
  const auto picture = Tensor<float, 4, Cpu>::copy_of(decoded.view());
  tape.clear();
  const auto guard = tape.inference();
  const auto again = model.vae->encode(constant(tape, image));
  CHECK(std::memcmp(again.mean.data(), mean.data(), static_cast<std::size_t>(mean.size()) * sizeof(float)) == 0);
  const auto drawn = model.vae->decode(again.mean);
  CHECK(std::memcmp(drawn.data(), picture.data(), static_cast<std::size_t>(picture.size()) * sizeof(float)) == 0);
}

TEST_CASE("a posterior sample is mean + deviation * noise") {
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  const auto mean = Tensor<float, 4, Cpu>::full(Extents<4>{1, 1, 2, 2}, 0.5);
  const auto log_variance = Tensor<float, 4, Cpu>::full(Extents<4>{1, 1, 2, 2}, 1.3862944);  // deviation 2
  const auto noise = Tensor<float, 4, Cpu>::from(Extents<4>{1, 1, 2, 2}, std::vector<float>{0, 1, -1, 2});
  const LatentPosterior<float, Cpu> posterior{constant(tape, mean), constant(tape, log_variance)};
  const auto sample = posterior.sample(noise.view());
  const float expected[] = {0.5f, 2.5f, -1.5f, 4.5f};
  for (int i = 0; i < 4; ++i) CHECK(sample.data()[i] == doctest::Approx(expected[i]).epsilon(1e-6));
}

TEST_CASE("presets have the published sizes") {
  // 83,653,863 weights: AutoencoderKL of SD1.5 as diffusers counts them.
  auto vae = std::make_unique<AutoencoderKL<presets::sd_vae, float, Cpu>>();
  index_t count = 0;
  for_each_parameter<float, Cpu>(*vae, [&](const std::string&, AnyParameter<float, Cpu>& p) { count += p.size(); });
  CHECK(count == 83'653'863);
  CHECK(presets::sd_vae.factor() == 8);
}
