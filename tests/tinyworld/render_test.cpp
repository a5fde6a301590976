// SPDX-License-Identifier: MIT
// The renderer: areas of the shapes against geometry, determinism, values in range.
#include "../../examples/tinyworld/world/render.hpp"

#include <doctest/doctest.h>

#include <cmath>

namespace {

/// Area covered by one shape of radius 8 in the middle, measured from a picture without nuisance.
double drawn_area(tinyworld::Shape shape, float radius) {
  tinyworld::Scene scene;
  scene.background = tinyworld::Background::black;
  scene.objects[0].shape = shape;
  scene.objects[0].colour = tinyworld::Colour::red;
  scene.objects[0].radius = radius;
  const tinyworld::Image image = tinyworld::render(scene);
  const float low = tinyworld::kBackgroundPalette[2][0];
  const float high = tinyworld::kPalette[0][0];
  double area = 0;
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) area += (image.pixel(x, y)[0] - low) / (high - low);
  }
  return area;
}

}  // namespace

TEST_CASE("anti-aliased areas agree with geometry") {
  const double pi = 3.14159265358979;
  const float radius = 8;
  const double square = radius * radius;
  using tinyworld::Shape;
  CHECK(drawn_area(Shape::circle, radius) == doctest::Approx(pi * square).epsilon(0.01));
  CHECK(drawn_area(Shape::square, radius) == doctest::Approx(4 * 0.9 * 0.9 * square).epsilon(0.01));
  CHECK(drawn_area(Shape::triangle, radius) == doctest::Approx(1.06 * 1.84 * square).epsilon(0.015));
  CHECK(drawn_area(Shape::ring, radius) == doctest::Approx(pi * (1.04 * 1.04 - 0.54 * 0.54) * square).epsilon(0.01));
  CHECK(drawn_area(Shape::cross, radius) ==
        doctest::Approx(4 * (2 * 1.04 * 0.34 - 0.34 * 0.34) * square).epsilon(0.01));
}

TEST_CASE("a scene renders to the same bits twice and to values in [0, 1]") {
  lpo::RandomStream random(3);
  for (int n = 0; n < 50; ++n) {
    const tinyworld::Scene scene = tinyworld::sample_scene(random);
    const tinyworld::Image image = tinyworld::render(scene);
    CHECK(image.rgb == tinyworld::render(scene).rgb);
    bool in_range = true;
    for (const float value : image.rgb) in_range = in_range && value >= 0 && value <= 1;
    CHECK(in_range);
  }
}
