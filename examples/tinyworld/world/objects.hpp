// SPDX-License-Identifier: MIT
// Object measurement: the shape, colour, size and place of each component of a picture, as probabilities.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "render.hpp"
#include "segment.hpp"

namespace tinyworld {

/// What a component looks like. Probabilities add up to one per attribute; lengths are in pixels.
struct MeasuredObject {
  std::array<float, kShapeCount> shape{};
  std::array<float, kColourCount> colour{};
  std::array<float, kSizeCount> size{};
  std::array<float, kPositionCount> position{};
  float x = 0;  ///< centre of the best-fitting shape
  float y = 0;
  float radius = 0;
  float mass = 0;      ///< covered area
  float presence = 0;  ///< 1 for a patch that clearly stands out from the background, towards 0 for a shadow
  float fit = 0;       ///< soft intersection over union with the best-fitting shape
  Rgb paint{};         ///< colour of its body
  float saturation = 0;
  float blur = 0;       ///< amount of half-covered area per length of outline
  float roughness = 0;  ///< root mean square deviation from `paint` in its body
};

/// A picture as the scorer sees it, independent of any caption.
struct Analysis {
  std::vector<MeasuredObject> objects;  // by falling area, at most four
  std::array<float, kBackgroundCount> background{};
  float background_roughness = 0;  ///< root mean square deviation from the lit background
  float clutter = 0;               ///< share of the picture that is neither background nor a measured object
};

namespace detail {

inline float logistic(float x) { return 1.0f / (1.0f + std::exp(-x)); }

template <std::size_t count>
std::array<float, count> softmax(const std::array<float, count>& logits) {
  const float top = *std::max_element(logits.begin(), logits.end());
  std::array<float, count> result;
  float sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += result[i] = std::exp(logits[i] - top);
  for (float& p : result) p /= sum;
  return result;
}

/// Area and vertical centroid of each shape at radius 1.
struct ShapeMoments {
  float area;
  float centroid_y;
};

inline const std::array<ShapeMoments, kShapeCount>& shape_moments() {
  static const std::array<ShapeMoments, kShapeCount> moments = [] {
    std::array<ShapeMoments, kShapeCount> result{};
    constexpr int kGrid = 240;
    for (int s = 0; s < kShapeCount; ++s) {
      double area = 0, first = 0;
      for (int i = 0; i < kGrid; ++i) {
        for (int j = 0; j < kGrid; ++j) {
          const float x = -1.2f + 0.01f * (static_cast<float>(j) + 0.5f);
          const float y = -1.2f + 0.01f * (static_cast<float>(i) + 0.5f);
          if (shape_distance(static_cast<Shape>(s), x, y) <= 0) area += 1, first += y;
        }
      }
      result[static_cast<std::size_t>(s)] = {static_cast<float>(area * 1e-4), static_cast<float>(first / area)};
    }
    return result;
  }();
  return moments;
}

/// The soft coverage of one component over a window of the picture.
struct CoverageWindow {
  int x0 = 0, y0 = 0, width = 0, height = 0;
  std::array<float, kPixelCount> alpha;
  float mass = 0, x = 0, y = 0;  // area and centroid

  float at(int x_index, int y_index) const { return alpha[static_cast<std::size_t>(y_index * width + x_index)]; }
};

inline Rgb difference(const Rgb& a, const Rgb& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }

/// Colour of a component's body: the mean of the pixels that stand out most, since edges are mixtures.
inline Rgb body_colour(const Image& image, const Segmentation& parts, const Component& component, float& contrast) {
  std::vector<float> values;
  values.reserve(component.pixels.size());
  for (const int i : component.pixels) values.push_back(parts.contrast[static_cast<std::size_t>(i)]);
  const auto high = values.begin() + static_cast<std::ptrdiff_t>(values.size() * 7 / 10);
  std::nth_element(values.begin(), high, values.end());
  contrast = *high;
  Rgb sum{};
  float count = 0;
  for (const int i : component.pixels) {
    if (parts.contrast[static_cast<std::size_t>(i)] < 0.85f * contrast) continue;
    const Rgb value = pixel_of(image, i);
    for (std::size_t c = 0; c < 3; ++c) sum[c] += value[c];
    count += 1;
  }
  for (float& c : sum) c /= count;
  return sum;
}

inline CoverageWindow cover(const Image& image, const Segmentation& parts, int id, const Rgb& paint) {
  CoverageWindow window;
  int x_first = kImageSize, x_last = 0, y_first = kImageSize, y_last = 0;
  for (const int i : parts.components[static_cast<std::size_t>(id)].pixels) {
    x_first = std::min(x_first, i % kImageSize), x_last = std::max(x_last, i % kImageSize);
    y_first = std::min(y_first, i / kImageSize), y_last = std::max(y_last, i / kImageSize);
  }
  window.x0 = std::max(0, x_first - 2);
  window.y0 = std::max(0, y_first - 2);
  window.width = std::min(kImageSize - 1, x_last + 2) - window.x0 + 1;
  window.height = std::min(kImageSize - 1, y_last + 2) - window.y0 + 1;
  for (int v = 0; v < window.height; ++v) {
    for (int u = 0; u < window.width; ++u) {
      const int x = window.x0 + u;
      const int y = window.y0 + v;
      const int owner = parts.owner[static_cast<std::size_t>(y * kImageSize + x)];
      float alpha = 0;
      if (owner == id || owner == -1) {
        const Rgb model = parts.plane.at(x, y);
        const Rgb towards = difference(paint, model);
        alpha = dot(difference(pixel_of(image, y * kImageSize + x), model), towards) /
                std::max(squared_norm(towards), 1e-4f);
        // The dead zone keeps background texture from counting as a faint object.
        alpha = std::clamp((alpha - 0.1f) / 0.85f, 0.0f, 1.0f);
      }
      window.alpha[static_cast<std::size_t>(v * window.width + u)] = alpha;
      window.mass += alpha;
      window.x += alpha * (static_cast<float>(x) + 0.5f);
      window.y += alpha * (static_cast<float>(y) + 0.5f);
    }
  }
  window.x /= std::max(window.mass, 1e-3f);
  window.y /= std::max(window.mass, 1e-3f);
  return window;
}

/// Soft intersection over union of the window with a drawn shape; what lies outside the picture is not counted.
inline float shape_overlap(const CoverageWindow& window, const SceneObject& object) {
  float both = 0;
  float either = 0;
  const float scale = 1.0f / object.radius;
  for (int v = 0; v < window.height; ++v) {
    const float y = (static_cast<float>(window.y0 + v) + 0.5f - object.y) * scale;
    for (int u = 0; u < window.width; ++u) {
      const float x = (static_cast<float>(window.x0 + u) + 0.5f - object.x) * scale;
      const float distance = object.radius * shape_distance(object.shape, x, y);
      const float drawn = std::clamp(0.5f - distance / 1.3f, 0.0f, 1.0f);
      const float seen = window.at(u, v);
      both += std::min(drawn, seen);
      either += std::max(drawn, seen);
    }
  }
  return both / std::max(either, 1e-3f);
}

inline void measure_shape(const CoverageWindow& window, MeasuredObject& object) {
  std::array<float, kShapeCount> logits;
  object.fit = 0;
  for (int s = 0; s < kShapeCount; ++s) {
    const ShapeMoments& moments = shape_moments()[static_cast<std::size_t>(s)];
    SceneObject candidate;
    candidate.shape = static_cast<Shape>(s);
    const float radius = std::sqrt(window.mass / moments.area);
    float best = 0;
    float best_radius = radius;
    for (const float scale : {0.94f, 1.0f, 1.06f}) {
      candidate.radius = radius * scale;
      candidate.x = window.x;
      candidate.y = window.y - candidate.radius * moments.centroid_y;
      const float overlap = shape_overlap(window, candidate);
      if (overlap > best) best = overlap, best_radius = candidate.radius;
    }
    logits[static_cast<std::size_t>(s)] = 32.0f * best;
    if (best > object.fit) {
      object.fit = best;
      object.radius = best_radius;
      object.x = window.x;
      object.y = window.y - best_radius * moments.centroid_y;
    }
  }
  object.shape = softmax(logits);
}

inline void measure_colour(MeasuredObject& object) {
  std::array<float, kColourCount> logits;
  for (std::size_t k = 0; k < kColourCount; ++k) {
    // Washed-out paint is still that colour, so the distance is to the line from pale to full.
    const Rgb pale = desaturated(kPalette[k], 0.5f);
    const Rgb line = difference(kPalette[k], pale);
    const Rgb from_pale = difference(object.paint, pale);
    const float along = std::clamp(dot(from_pale, line) / squared_norm(line), 0.0f, 1.0f);
    float square = 0;
    for (std::size_t c = 0; c < 3; ++c) square += (from_pale[c] - along * line[c]) * (from_pale[c] - along * line[c]);
    logits[k] = -square / (2 * 0.10f * 0.10f);
  }
  object.colour = softmax(logits);
  const auto best = static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const Rgb full = difference(kPalette[best], desaturated(kPalette[best], 0.0f));
  const Rgb own = difference(object.paint, desaturated(object.paint, 0.0f));
  object.saturation = std::sqrt(squared_norm(own) / squared_norm(full));
}

inline void measure_place(MeasuredObject& object) {
  object.size[1] = logistic((object.radius - 6.45f) / 0.3f);
  object.size[0] = 1 - object.size[1];
  const auto thirds = [](float centre) {
    const float low = logistic((12.8f - centre) / 0.45f);
    const float high = logistic((centre - 19.2f) / 0.45f);
    return std::array<float, 3>{low, std::max(0.0f, 1 - low - high), high};
  };
  const std::array<float, 3> column = thirds(object.x);
  const std::array<float, 3> row = thirds(object.y);
  for (std::size_t i = 0; i < kPositionCount; ++i) object.position[i] = row[i / 3] * column[i % 3];
}

/// Blur of the outline and roughness of the body, the two flaws that do not change what an object is.
inline void measure_finish(const Image& image, const CoverageWindow& window, MeasuredObject& object) {
  float half_covered = 0;
  float square = 0;
  float count = 0;
  float outline = 0;
  for (int v = 0; v < window.height; ++v) {
    for (int u = 0; u < window.width; ++u) {
      const float alpha = window.at(u, v);
      half_covered += 4 * alpha * (1 - alpha);
      if (u + 1 < window.width) outline += std::fabs(window.at(u + 1, v) - alpha);
      if (v + 1 < window.height) outline += std::fabs(window.at(u, v + 1) - alpha);
      if (alpha < 0.93f) continue;
      const Rgb d = difference(pixel_of(image, (window.y0 + v) * kImageSize + window.x0 + u), object.paint);
      square += squared_norm(d);
      count += 1;
    }
  }
  object.blur = half_covered / std::max(outline, 1.0f);
  object.roughness = count > 0 ? std::sqrt(square / count) : 0.3f;
}

}  // namespace detail

/// Measures every object of a picture; needs no caption. Values outside [0, 1] are clamped, NaN counts as 0.
inline Analysis analyse(const Image& raw, const SegmentOptions& options = {}) {
  Image image = raw;
  for (float& value : image.rgb) value = value > 0 ? std::min(value, 1.0f) : 0.0f;
  const Segmentation parts = segment(image, options);
  Analysis result;
  std::array<float, kBackgroundCount> logits;
  for (std::size_t k = 0; k < kBackgroundCount; ++k) {
    logits[k] =
        -detail::squared_norm(detail::difference(parts.plane.base, kBackgroundPalette[k])) / (2 * 0.09f * 0.09f);
  }
  result.background = detail::softmax(logits);

  for (std::size_t id = 0; id < parts.components.size() && id < 4; ++id) {
    MeasuredObject object;
    float contrast = 0;
    object.paint = detail::body_colour(image, parts, parts.components[id], contrast);
    const detail::CoverageWindow window = detail::cover(image, parts, static_cast<int>(id), object.paint);
    object.mass = window.mass;
    if (window.mass < 4) continue;
    object.presence = detail::logistic((contrast - 0.22f) / 0.02f);
    detail::measure_shape(window, object);
    detail::measure_colour(object);
    detail::measure_place(object);
    detail::measure_finish(image, window, object);
    result.objects.push_back(object);
  }

  float square = 0;
  float count = 0;
  float specks = 0;
  for (int i = 0; i < kPixelCount; ++i) {
    const int owner = parts.owner[static_cast<std::size_t>(i)];
    bool near_object = owner >= 0;
    detail::for_neighbours(i,
                           [&](int j) { near_object = near_object || parts.owner[static_cast<std::size_t>(j)] >= 0; });
    if (owner == -2 || owner >= 4) specks += 1;
    if (near_object) continue;
    square += parts.contrast[static_cast<std::size_t>(i)] * parts.contrast[static_cast<std::size_t>(i)];
    count += 1;
  }
  result.background_roughness = count > 0 ? std::sqrt(square / count) : 0.3f;
  result.clutter = specks / kPixelCount;
  return result;
}

}  // namespace tinyworld
