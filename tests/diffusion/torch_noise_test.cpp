// SPDX-License-Identifier: MIT
// torch's latents in channels-last order.
#include <lpo/diffusion/torch_noise.hpp>

#include <doctest/doctest.h>

#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/random.hpp>
#include <lpo/diffusion/sample.hpp>

#include "golden_file.hpp"

using lpo::Reference;
using lpo::Tensor;
using lpo::TorchGenerator;

TEST_CASE("latents are torch.randn((n, c, h, w)) with the channels moved last") {
  const auto golden = golden::open("torch_random").read_vector<float>("randn/float32/42");  // first (1, 4, 4, 3)
  lpo::Context<Reference> context(1);
  Tensor<float, 4, Reference> latents(lpo::Extents<4>{1, 4, 3, 4}), two(lpo::Extents<4>{2, 4, 3, 4});
  TorchGenerator generator(42);
  lpo::fill_torch_normal(context, latents.view(), generator);
  for (lpo::index_t y = 0; y < 4; ++y)
    for (lpo::index_t x = 0; x < 3; ++x)
      for (lpo::index_t c = 0; c < 4; ++c)
        CHECK(latents(0, y, x, c) == golden[static_cast<std::size_t>((c * 4 + y) * 3 + x)]);

  for (lpo::index_t row = 0; row < 2; ++row) {  // a generator for each picture
    TorchGenerator own(42);
    lpo::fill_torch_normal(context, two.view().slice(0, row, row + 1), own);
  }
  for (int i = 0; i < 48; ++i) CHECK((two.data()[i] == latents.data()[i] && two.data()[48 + i] == latents.data()[i]));
}

TEST_CASE("an empty batch draws nothing, a strided view is refused") {
  lpo::Context<Reference> context(1);
  Tensor<float, 4, Reference> none(lpo::Extents<4>{0, 4, 3, 4}), some(lpo::Extents<4>{1, 4, 3, 4});
  TorchGenerator generator(1), untouched(1);
  lpo::fill_torch_normal(context, none.view(), generator);
  CHECK(generator.bits() == untouched.bits());
  CHECK_THROWS_AS(lpo::fill_torch_normal(context, some.view().slice(3, 0, 2), generator), lpo::ShapeError);
}

TEST_CASE("an ancestral sampler takes its noise from the generator") {
  struct Zero {
    void predict(lpo::View<const float, 4, Reference>, double, lpo::View<float, 4, Reference> y) const {
      for (lpo::index_t i = 0; i < y.size(); ++i) y.data[i] = 0;
    }
  } zero;
  lpo::Context<Reference> context(1);
  const lpo::Sampler sampler(lpo::NoiseSchedule(), lpo::SamplerKind::euler_ancestral, 2);
  auto x = Tensor<float, 4, Reference>::zeros({1, 4, 3, 4});
  TorchGenerator generator(42), again(42);
  lpo::sample(context, sampler, zero, x.view(),
              [&](int, const lpo::View<float, 4, Reference>& z) { lpo::fill_torch_normal(context, z, generator); });
  Tensor<float, 4, Reference> z(x.extents());
  lpo::fill_torch_normal(context, z.view(), again);  // only the first of the two steps adds noise
  for (int i = 0; i < 48; ++i)
    CHECK(x.data()[i] ==
          doctest::Approx(sampler.steps()[1].a * sampler.steps()[0].sigma * static_cast<double>(z.data()[i])));
}
