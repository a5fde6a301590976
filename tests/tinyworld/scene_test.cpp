// SPDX-License-Identifier: MIT
// The scene sampler: every attribute occurs, objects stay inside and apart, relations and positions mean what they say.
#include "../../examples/tinyworld/world/scene.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>

TEST_CASE("sampled scenes are inside the picture and mean what their labels say") {
  lpo::RandomStream random(11);
  std::array<int, 2> counts{};
  std::array<int, tinyworld::kShapeCount> shapes{};
  std::array<int, tinyworld::kColourCount> colours{};
  std::array<int, tinyworld::kPositionCount> positions{};
  std::array<int, tinyworld::kRelationCount> relations{};
  std::array<int, tinyworld::kBackgroundCount> backgrounds{};
  const int total = 20000;
  for (int n = 0; n < total; ++n) {
    const tinyworld::Scene scene = tinyworld::sample_scene(random);
    ++counts[static_cast<std::size_t>(scene.object_count - 1)];
    ++shapes[static_cast<std::size_t>(scene.objects[0].shape)];
    ++colours[static_cast<std::size_t>(scene.objects[0].colour)];
    ++backgrounds[static_cast<std::size_t>(scene.background)];
    for (int i = 0; i < scene.object_count; ++i) {
      const tinyworld::SceneObject& object = scene.objects[static_cast<std::size_t>(i)];
      REQUIRE(object.x - object.radius > 0);
      REQUIRE(object.y - object.radius > 0);
      REQUIRE(object.x + object.radius < tinyworld::kImageSize);
      REQUIRE(object.y + object.radius < tinyworld::kImageSize);
      REQUIRE((object.size == tinyworld::Size::large) == (object.radius > 6.45f));
    }
    if (scene.object_count == 1) {
      ++positions[static_cast<std::size_t>(scene.position)];
      const int column = scene.objects[0].x < 12.8f ? 0 : scene.objects[0].x < 19.2f ? 1 : 2;
      const int row = scene.objects[0].y < 12.8f ? 0 : scene.objects[0].y < 19.2f ? 1 : 2;
      REQUIRE(static_cast<int>(scene.position) == 3 * row + column);
    } else {
      ++relations[static_cast<std::size_t>(scene.relation)];
      const float dx = scene.objects[1].x - scene.objects[0].x;
      const float dy = scene.objects[1].y - scene.objects[0].y;
      REQUIRE(scene.objects[0].colour != scene.objects[1].colour);
      const bool horizontal = std::fabs(dx) > std::fabs(dy);
      const auto seen = horizontal ? (dx > 0 ? tinyworld::Relation::left_of : tinyworld::Relation::right_of)
                                   : (dy > 0 ? tinyworld::Relation::above : tinyworld::Relation::below);
      REQUIRE(seen == scene.relation);
      REQUIRE(std::hypot(dx, dy) > scene.objects[0].radius + scene.objects[1].radius);
    }
  }
  CHECK(std::fabs(counts[1] - 0.4 * total) < 5 * std::sqrt(total * 0.24));
  for (const int n : shapes) CHECK(n > total / tinyworld::kShapeCount * 9 / 10);
  for (const int n : colours) CHECK(n > total / tinyworld::kColourCount * 9 / 10);
  for (const int n : backgrounds) CHECK(n > total / tinyworld::kBackgroundCount * 9 / 10);
  for (const int n : positions) CHECK(n > counts[0] / tinyworld::kPositionCount * 9 / 10);
  for (const int n : relations) CHECK(n > counts[1] / tinyworld::kRelationCount * 9 / 10);
}

TEST_CASE("the palette is well separated") {
  for (std::size_t i = 0; i < tinyworld::kColourCount; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      float square = 0;
      for (std::size_t c = 0; c < 3; ++c) {
        square += std::pow(tinyworld::kPalette[i][c] - tinyworld::kPalette[j][c], 2.0f);
      }
      CHECK(std::sqrt(square) > 0.45f);
    }
  }
}
