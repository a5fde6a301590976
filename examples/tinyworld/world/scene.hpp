// SPDX-License-Identifier: MIT
// Scene: what a picture of the tiny world shows, and the sampler that invents one.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include <lpo/base/philox.hpp>

#include "image.hpp"

namespace tinyworld {

enum class Shape { circle, square, triangle, ring, cross };
enum class Colour { red, yellow, green, cyan, blue, purple, pink };
enum class Size { small, large };
/// Cells of a 3x3 grid, row by row; the position of the object of a one-object scene.
enum class Position { top_left, top, top_right, left, centre, right, bottom_left, bottom, bottom_right };
/// Where object 0 lies as seen from object 1.
enum class Relation { left_of, right_of, above, below };
enum class Background { white, gray, black, beige, brown };

inline constexpr int kShapeCount = 5;
inline constexpr int kColourCount = 7;
inline constexpr int kSizeCount = 2;
inline constexpr int kPositionCount = 9;
inline constexpr int kRelationCount = 4;
inline constexpr int kBackgroundCount = 5;

using Rgb = std::array<float, 3>;

inline constexpr std::array<Rgb, kColourCount> kPalette = {{{0.88f, 0.13f, 0.13f},
                                                            {0.98f, 0.85f, 0.10f},
                                                            {0.12f, 0.62f, 0.20f},
                                                            {0.15f, 0.82f, 0.88f},
                                                            {0.14f, 0.30f, 0.90f},
                                                            {0.60f, 0.20f, 0.80f},
                                                            {1.00f, 0.44f, 0.72f}}};
inline constexpr std::array<Rgb, kBackgroundCount> kBackgroundPalette = {{{0.95f, 0.95f, 0.95f},
                                                                          {0.52f, 0.52f, 0.52f},
                                                                          {0.06f, 0.06f, 0.07f},
                                                                          {0.76f, 0.68f, 0.52f},
                                                                          {0.36f, 0.23f, 0.13f}}};

/// Radius in pixels of a drawn object of each size, before scale jitter.
inline constexpr std::array<float, kSizeCount> kRadius = {5.0f, 8.0f};

/// One object; (x, y) is the centre in pixels (pixel i covers [i, i + 1)), `angle` in radians.
struct SceneObject {
  Shape shape = Shape::circle;
  Colour colour = Colour::red;
  Size size = Size::large;
  float x = 16;
  float y = 16;
  float radius = 8;
  float angle = 0;
  Rgb tint = {0, 0, 0};
};

/// What no caption mentions: light, and how carefully the picture was made.
struct Nuisance {
  float light_angle = 0;     ///< direction of the brightness gradient, radians
  float light_strength = 0;  ///< relative brightness change from the centre to the border
  float saturation = 1;      ///< 1 = palette colours, 0 = grey objects
  float softness = 0.7f;     ///< width of an edge in pixels
  float mottle = 0;          ///< amplitude of the low-frequency background texture
  float grain = 0;           ///< standard deviation of the per-pixel noise
  std::uint64_t texture_seed = 0;
};

/// One or two objects on a background. `position` counts with one object, `relation` with two.
struct Scene {
  int object_count = 1;
  std::array<SceneObject, 2> objects;
  Position position = Position::centre;
  Relation relation = Relation::left_of;
  Background background = Background::white;
  Nuisance nuisance;
};

/// Frequencies and ranges of the sampler. The defaults make the data set of the shipped model.
struct SceneOptions {
  float two_object_probability = 0.4f;
  float position_jitter = 1.2f;  ///< pixels, uniform to both sides
  float scale_jitter = 0.06f;
  float angle_jitter = 0.10f;  ///< radians
  float tint_jitter = 0.03f;
  float max_light = 0.14f;
  float min_saturation = 0.68f;
  float max_softness = 2.0f;
  float max_mottle = 0.022f;
  float max_grain = 0.02f;
};

namespace detail {

template <class Enum>
Enum pick(lpo::RandomStream& random, int count) {
  return static_cast<Enum>(random.uniform_int(static_cast<std::uint32_t>(count)));
}

inline void sample_object(lpo::RandomStream& random, const SceneOptions& options, SceneObject& object) {
  object.shape = pick<Shape>(random, kShapeCount);
  object.colour = pick<Colour>(random, kColourCount);
  object.size = pick<Size>(random, kSizeCount);
  object.radius = kRadius[static_cast<std::size_t>(object.size)] *
                  random.uniform(1 - options.scale_jitter, 1 + options.scale_jitter);
  object.angle = random.uniform(-options.angle_jitter, options.angle_jitter);
  for (float& channel : object.tint) channel = random.uniform(-options.tint_jitter, options.tint_jitter);
}

/// Distance from the border at which an object of this radius, however shaped, is whole.
inline float margin(float radius) { return radius * 1.08f + 0.3f; }

inline void place_single(lpo::RandomStream& random, const SceneOptions& options, Scene& scene) {
  SceneObject& object = scene.objects[0];
  scene.position = pick<Position>(random, kPositionCount);
  const float near = std::fmax(8.0f, margin(object.radius) + 0.4f);
  const float half = 0.5f * kImageSize;
  const auto cell = static_cast<int>(scene.position);
  const float column = static_cast<float>(cell % 3 - 1);
  const float row = static_cast<float>(cell / 3 - 1);
  const float low = margin(object.radius);
  const float high = kImageSize - low;
  object.x = half + column * (half - near) + random.uniform(-options.position_jitter, options.position_jitter);
  object.y = half + row * (half - near) + random.uniform(-options.position_jitter, options.position_jitter);
  object.x = std::fmin(std::fmax(object.x, low), high);
  object.y = std::fmin(std::fmax(object.y, low), high);
}

inline void place_pair(lpo::RandomStream& random, Scene& scene) {
  scene.relation = pick<Relation>(random, kRelationCount);
  const bool horizontal = scene.relation == Relation::left_of || scene.relation == Relation::right_of;
  const bool first_is_near = scene.relation == Relation::left_of || scene.relation == Relation::above;
  SceneObject& near = scene.objects[first_is_near ? 0 : 1];
  SceneObject& far = scene.objects[first_is_near ? 1 : 0];
  // Along the axis of the relation the two share the room that their radii leave, with a gap between them.
  const float room = kImageSize - 2 * (margin(near.radius) + margin(far.radius));
  const float before = room * random.uniform(0.1f, 0.35f);
  const float after = room * random.uniform(0.1f, 0.35f);
  const float near_axis = before + margin(near.radius);
  const float far_axis = kImageSize - after - margin(far.radius);
  const float half = 0.5f * kImageSize;
  const float near_cross = half + random.uniform(-3.0f, 3.0f);
  const float far_cross = half + random.uniform(-3.0f, 3.0f);
  near.x = horizontal ? near_axis : near_cross;
  near.y = horizontal ? near_cross : near_axis;
  far.x = horizontal ? far_axis : far_cross;
  far.y = horizontal ? far_cross : far_axis;
}

inline void sample_nuisance(lpo::RandomStream& random, const SceneOptions& options, Nuisance& nuisance) {
  nuisance.light_angle = random.uniform(0.0f, 6.2831853f);
  nuisance.light_strength = random.uniform(0.0f, options.max_light);
  nuisance.saturation = random.uniform(options.min_saturation, 1.0f);
  nuisance.softness = random.uniform(0.7f, options.max_softness);
  nuisance.mottle = random.uniform(0.0f, options.max_mottle);
  nuisance.grain = random.uniform(0.0f, options.max_grain);
  nuisance.texture_seed = random.next_u64();
}

}  // namespace detail

/// Draws a scene. Two objects always differ in colour, and at most one of them is large, so that both fit.
inline Scene sample_scene(lpo::RandomStream& random, const SceneOptions& options = {}) {
  Scene scene;
  scene.object_count = random.bernoulli(options.two_object_probability) ? 2 : 1;
  scene.background = detail::pick<Background>(random, kBackgroundCount);
  detail::sample_object(random, options, scene.objects[0]);
  if (scene.object_count == 1) {
    detail::place_single(random, options, scene);
  } else {
    do {
      detail::sample_object(random, options, scene.objects[1]);
    } while (scene.objects[1].colour == scene.objects[0].colour ||
             (scene.objects[0].size == Size::large && scene.objects[1].size == Size::large));
    detail::place_pair(random, scene);
  }
  detail::sample_nuisance(random, options, scene.nuisance);
  return scene;
}

}  // namespace tinyworld
