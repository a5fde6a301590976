// SPDX-License-Identifier: MIT
// Sinusoidal timestep features against closed form and diffusers.
#include <lpo/nn/timestep_embedding.hpp>

#include <doctest/doctest.h>

#include "golden_file.hpp"

using namespace lpo;

TEST_CASE("cosines first, frequencies 10000^(-i / (width / 2))") {
  Context<Reference> context(1);
  Tape<Reference> tape(context);
  const float t[] = {951.0f};
  const auto y = sinusoidal_embedding<double>(tape, t, 320);
  REQUIRE(to_string(y.extents()) == "[1, 320]");
  CHECK(y.data()[0] == doctest::Approx(-0.6195916).epsilon(1e-7));
  CHECK(y.data()[1] == doctest::Approx(0.7689459).epsilon(1e-7));
  CHECK(y.data()[160] == doctest::Approx(0.7849244).epsilon(1e-7));
  CHECK(y.data()[161] == doctest::Approx(-0.6393138).epsilon(1e-7));
  CHECK_FALSE(y.requires_gradient());
}

TEST_CASE("equal to diffusers' Timesteps in every storage type") {
  const auto file = golden::open("layers");
  for (const int width : {320, 14}) {
    const std::string key = "timestep_embedding_" + std::to_string(width);
    const auto t = file.read_vector<std::int64_t>(key + "/t");
    const std::vector<float> timesteps(t.begin(), t.end());
    const auto truth = file.read_vector<float>(key + "/y");
    Context<Cpu> context(1);
    Tape<Cpu> tape(context);
    const auto y = sinusoidal_embedding<float>(tape, timesteps, width);
    CHECK(golden::relative_error(y.data(), truth.data(), y.size()) < 1e-7);
    const auto rounded = sinusoidal_embedding<bfloat16>(tape, timesteps, width);
    for (std::size_t i = 0; i < truth.size(); ++i)
      CHECK(static_cast<float>(rounded.data()[i]) == doctest::Approx(truth[i]).epsilon(0.01));
  }
}
