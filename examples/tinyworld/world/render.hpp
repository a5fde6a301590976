// SPDX-License-Identifier: MIT
// Renderer: draws a Scene as an anti-aliased 32x32 picture from signed distance functions.
#pragma once

#include <algorithm>
#include <cmath>

#include "scene.hpp"

namespace tinyworld {

/// Signed distance (negative inside) of the point (x, y), y downwards, to `shape` of radius 1 centred on the origin.
/// Exact near edges, a bound near corners. All shapes are scaled to look equally large at the same radius.
inline float shape_distance(Shape shape, float x, float y) {
  switch (shape) {
    case Shape::circle:
      return std::sqrt(x * x + y * y) - 1.0f;
    case Shape::square:
      return std::max(std::fabs(x), std::fabs(y)) - 0.90f;
    case Shape::triangle: {
      // Isosceles, apex (0, -1.02), base corners (+-1.06, 0.82).
      const float slanted = 0.866499f * std::fabs(x) - 0.499179f * y - 0.509162f;
      return std::max(slanted, y - 0.82f);
    }
    case Shape::ring:
      return std::fabs(std::sqrt(x * x + y * y) - 0.79f) - 0.25f;
    case Shape::cross: {
      const float ax = std::fabs(x);
      const float ay = std::fabs(y);
      const float horizontal = std::max(ax - 1.04f, ay - 0.34f);
      const float vertical = std::max(ay - 1.04f, ax - 0.34f);
      return std::min(horizontal, vertical);
    }
  }
  return 1.0f;
}

/// How much of the pixel with centre (x, y) the object covers, in [0, 1], for an edge `softness` pixels wide.
inline float object_coverage(const SceneObject& object, float x, float y, float softness) {
  const float dx = x - object.x;
  const float dy = y - object.y;
  const float c = std::cos(object.angle);
  const float s = std::sin(object.angle);
  const float distance = object.radius * shape_distance(object.shape, (c * dx + s * dy) / object.radius,
                                                        (c * dy - s * dx) / object.radius);
  return std::clamp(0.5f - distance / softness, 0.0f, 1.0f);
}

namespace detail {

/// Adds a smooth random pattern of about eight pixels' wavelength, the same for all channels.
inline void add_mottle(lpo::RandomStream& random, float amplitude, Image& image) {
  constexpr int kWaves = 4;
  float fx[kWaves];
  float fy[kWaves];
  float phase[kWaves];
  for (int i = 0; i < kWaves; ++i) {
    const float direction = random.uniform(0.0f, 6.2831853f);
    const float frequency = random.uniform(0.5f, 1.0f);
    fx[i] = frequency * std::cos(direction);
    fy[i] = frequency * std::sin(direction);
    phase[i] = random.uniform(0.0f, 6.2831853f);
  }
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      float wave = 0;
      for (int i = 0; i < kWaves; ++i) {
        wave += std::sin(fx[i] * static_cast<float>(x) + fy[i] * static_cast<float>(y) + phase[i]);
      }
      for (int c = 0; c < 3; ++c) image.pixel(x, y)[c] += amplitude * 0.7f * wave;
    }
  }
}

}  // namespace detail

/// The colour in which an object is painted before lighting: palette colour, desaturated and tinted.
inline Rgb object_colour(const SceneObject& object, float saturation) {
  Rgb colour = kPalette[static_cast<std::size_t>(object.colour)];
  const float luminance = 0.3f * colour[0] + 0.59f * colour[1] + 0.11f * colour[2];
  for (std::size_t c = 0; c < 3; ++c) {
    colour[c] = std::clamp(luminance + saturation * (colour[c] - luminance) + object.tint[c], 0.0f, 1.0f);
  }
  return colour;
}

/// Draws `scene`; the same scene gives the same bits. Two by two samples per pixel, each with a soft edge.
inline Image render(const Scene& scene) {
  Image image;
  const Nuisance& nuisance = scene.nuisance;
  lpo::RandomStream random(nuisance.texture_seed, 0x7e78);
  const Rgb background = kBackgroundPalette[static_cast<std::size_t>(scene.background)];
  const float light_x = nuisance.light_strength * std::cos(nuisance.light_angle) / (0.5f * kImageSize);
  const float light_y = nuisance.light_strength * std::sin(nuisance.light_angle) / (0.5f * kImageSize);

  for (int y = 0; y < kImageSize; ++y) {
    for (int x = 0; x < kImageSize; ++x) std::copy(background.begin(), background.end(), image.pixel(x, y));
  }
  if (nuisance.mottle > 0) detail::add_mottle(random, nuisance.mottle, image);
  for (int i = 0; i < scene.object_count; ++i) {
    const SceneObject& object = scene.objects[static_cast<std::size_t>(i)];
    const Rgb colour = object_colour(object, nuisance.saturation);
    const float reach = object.radius * 1.55f + 2.0f;  // covers a rotated square and the soft edge
    const int x_first = std::max(0, static_cast<int>(object.x - reach));
    const int x_last = std::min(kImageSize - 1, static_cast<int>(object.x + reach));
    const int y_first = std::max(0, static_cast<int>(object.y - reach));
    const int y_last = std::min(kImageSize - 1, static_cast<int>(object.y + reach));
    for (int y = y_first; y <= y_last; ++y) {
      for (int x = x_first; x <= x_last; ++x) {
        float coverage = 0;
        for (int sample = 0; sample < 4; ++sample) {
          const float sx = static_cast<float>(x) + (sample % 2 == 0 ? 0.25f : 0.75f);
          const float sy = static_cast<float>(y) + (sample / 2 == 0 ? 0.25f : 0.75f);
          coverage += 0.25f * object_coverage(object, sx, sy, nuisance.softness);
        }
        float* pixel = image.pixel(x, y);
        for (std::size_t c = 0; c < 3; ++c) pixel[c] += coverage * (colour[c] - pixel[c]);
      }
    }
  }
  for (int y = 0; y < kImageSize; ++y) {
    for (int x = 0; x < kImageSize; ++x) {
      const float light = 1.0f + light_x * (static_cast<float>(x) - 15.5f) + light_y * (static_cast<float>(y) - 15.5f);
      const float grain = nuisance.grain > 0 ? nuisance.grain * random.normal() : 0.0f;
      for (int c = 0; c < 3; ++c) {
        float& value = image.pixel(x, y)[c];
        value = std::clamp(value * light + grain, 0.0f, 1.0f);
      }
    }
  }
  return image;
}

}  // namespace tinyworld
