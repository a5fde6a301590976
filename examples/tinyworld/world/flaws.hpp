// SPDX-License-Identifier: MIT
// Flaws: pictures as a half-trained generator makes them, without one; the stand-in for tests and rater calibration.
#pragma once

#include <algorithm>
#include <cmath>

#include "caption.hpp"
#include "render.hpp"

namespace tinyworld {

/// How often and how badly the stand-in generator errs.
struct FlawOptions {
  float wrong_attribute = 0.25f;  ///< probability that an attribute of the scene is drawn anew
  float missing_object = 0.15f;   ///< probability that the second object is forgotten
  float max_blur = 1.1f;          ///< standard deviation in pixels
  float max_stain = 0.35f;        ///< opacity of a stray blob
};

/// Forgets or swaps attributes of `scene` at random.
inline Scene misread(lpo::RandomStream& random, Scene scene, const FlawOptions& options = {}) {
  const Scene other = sample_scene(random);
  const auto wrong = [&] { return random.bernoulli(options.wrong_attribute); };
  if (wrong()) scene.background = other.background;
  for (SceneObject& object : scene.objects) {
    if (wrong()) object.shape = detail::pick<Shape>(random, kShapeCount);
    if (wrong()) object.colour = detail::pick<Colour>(random, kColourCount);
    if (wrong()) object.radius = random.uniform(4.5f, 8.5f);
  }
  if (scene.object_count == 2 && wrong()) std::swap(scene.objects[0].x, scene.objects[1].x);
  if (scene.object_count == 2 && wrong()) std::swap(scene.objects[0].y, scene.objects[1].y);
  if (scene.object_count == 1 && wrong()) {
    scene.objects[0].x = random.uniform(9.0f, 23.0f);
    scene.objects[0].y = random.uniform(9.0f, 23.0f);
  }
  if (scene.object_count == 2 && random.bernoulli(options.missing_object)) scene.object_count = 1;
  return scene;
}

/// Blurs, stains and tints a picture as a weak decoder does.
inline Image smear(lpo::RandomStream& random, const Image& image, const FlawOptions& options = {}) {
  Image result = image;
  const float sigma = random.uniform(0.05f, options.max_blur);
  float weight[5];
  for (int k = 0; k < 5; ++k) weight[k] = std::exp(-0.5f * static_cast<float>((k - 2) * (k - 2)) / (sigma * sigma));
  for (int pass = 0; pass < 2; ++pass) {
    const Image source = result;
    for (int y = 0; y < kImageSize; ++y) {
      for (int x = 0; x < kImageSize; ++x) {
        for (int c = 0; c < 3; ++c) {
          float sum = 0;
          float total = 0;
          for (int k = 0; k < 5; ++k) {
            const int u = pass == 0 ? std::clamp(x + k - 2, 0, kImageSize - 1) : x;
            const int v = pass == 0 ? y : std::clamp(y + k - 2, 0, kImageSize - 1);
            sum += weight[k] * source.pixel(u, v)[c];
            total += weight[k];
          }
          result.pixel(x, y)[c] = sum / total;
        }
      }
    }
  }
  const float opacity = random.uniform(0.0f, options.max_stain);
  const float centre_x = random.uniform(0.0f, 32.0f);
  const float centre_y = random.uniform(0.0f, 32.0f);
  const float width = random.uniform(2.0f, 5.0f);
  const Rgb stain = kPalette[random.uniform_int(kColourCount)];
  for (int y = 0; y < kImageSize; ++y) {
    for (int x = 0; x < kImageSize; ++x) {
      const float dx = static_cast<float>(x) - centre_x;
      const float dy = static_cast<float>(y) - centre_y;
      const float a = opacity * std::exp(-0.5f * (dx * dx + dy * dy) / (width * width));
      for (std::size_t c = 0; c < 3; ++c) {
        float& value = result.pixel(x, y)[c];
        value = std::clamp(value + a * (stain[c] - value) + 0.01f * random.normal(), 0.0f, 1.0f);
      }
    }
  }
  return result;
}

/// One flawed attempt at drawing `wanted`; attempts with different streams differ as samples of a generator do.
inline Image attempt(lpo::RandomStream& random, const Scene& wanted, const FlawOptions& options = {}) {
  Scene scene = misread(random, wanted, options);
  detail::sample_nuisance(random, SceneOptions{}, scene.nuisance);
  return smear(random, render(scene), options);
}

}  // namespace tinyworld
