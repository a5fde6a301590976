// SPDX-License-Identifier: MIT
// Segmentation: separates a picture of the tiny world into a lit background and coloured components.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "scene.hpp"

namespace tinyworld {

inline constexpr int kPixelCount = kImageSize * kImageSize;

/// A background colour with a linear light gradient: value(c) = base[c] + x dx[c] + y dy[c], x and y from the centre.
struct BackgroundPlane {
  Rgb base{};
  Rgb dx{};
  Rgb dy{};

  Rgb at(int x, int y) const {
    Rgb value;
    for (std::size_t c = 0; c < 3; ++c) {
      value[c] = base[c] + dx[c] * (static_cast<float>(x) - 15.5f) + dy[c] * (static_cast<float>(y) - 15.5f);
    }
    return value;
  }
};

/// A connected patch of one palette colour.
struct Component {
  std::vector<int> pixels;  // y * 32 + x
};

/// What segment() finds. `owner` is the component of a pixel, -1 for background, -2 for specks that belong to nothing.
struct Segmentation {
  BackgroundPlane plane;
  std::array<float, kPixelCount> contrast{};  // RGB distance to the plane
  std::array<int, kPixelCount> owner{};
  std::vector<Component> components;  // by falling area
};

/// Distances in RGB beyond which a pixel is not background, and areas below which a patch is not an object.
struct SegmentOptions {
  float contrast_threshold = 0.17f;
  int smallest_object = 14;
};

namespace detail {

inline float squared_norm(const Rgb& v) { return v[0] * v[0] + v[1] * v[1] + v[2] * v[2]; }

inline float dot(const Rgb& a, const Rgb& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

inline Rgb pixel_of(const Image& image, int index) {
  const float* p = image.rgb.data() + 3 * static_cast<std::size_t>(index);
  return {p[0], p[1], p[2]};
}

/// A palette colour mixed towards its own grey; 1 leaves it as it is.
inline Rgb desaturated(const Rgb& colour, float saturation) {
  const float luminance = 0.3f * colour[0] + 0.59f * colour[1] + 0.11f * colour[2];
  Rgb result;
  for (std::size_t c = 0; c < 3; ++c) result[c] = luminance + saturation * (colour[c] - luminance);
  return result;
}

/// Least-squares plane through the pixels that lie within `tolerance` of the plane so far; true if enough of them do.
inline bool refit_plane(const Image& image, float tolerance, BackgroundPlane& plane) {
  double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0, syy = 0;
  std::array<double, 3> sv{}, svx{}, svy{};
  for (int i = 0; i < kPixelCount; ++i) {
    const int x = i % kImageSize;
    const int y = i / kImageSize;
    const Rgb value = pixel_of(image, i);
    const Rgb model = plane.at(x, y);
    float distance = 0;
    for (std::size_t c = 0; c < 3; ++c) distance += (value[c] - model[c]) * (value[c] - model[c]);
    if (distance > tolerance * tolerance) continue;
    const double u = x - 15.5;
    const double v = y - 15.5;
    n += 1, sx += u, sy += v, sxx += u * u, sxy += u * v, syy += v * v;
    for (std::size_t c = 0; c < 3; ++c) {
      const double d = value[c];
      sv[c] += d, svx[c] += d * u, svy[c] += d * v;
    }
  }
  // Too few pixels in agreement: keep the flat estimate rather than extrapolate a tilt from a corner.
  if (n < 150) return false;
  const double mx = sx / n, my = sy / n;
  const double cxx = sxx - n * mx * mx + 1, cyy = syy - n * my * my + 1, cxy = sxy - n * mx * my;
  const double determinant = cxx * cyy - cxy * cxy;
  for (std::size_t c = 0; c < 3; ++c) {
    const double mean = sv[c] / n;
    const double bx = svx[c] - n * mean * mx, by = svy[c] - n * mean * my;
    const double dx = (bx * cyy - by * cxy) / determinant;
    const double dy = (by * cxx - bx * cxy) / determinant;
    plane.base[c] = static_cast<float>(mean - dx * mx - dy * my);
    plane.dx[c] = static_cast<float>(dx);
    plane.dy[c] = static_cast<float>(dy);
  }
  return true;
}

/// The background from the median of the border, refined on the pixels that agree with it.
inline BackgroundPlane fit_background(const Image& image) {
  BackgroundPlane plane;
  std::array<float, 8 * kImageSize> border;
  for (std::size_t c = 0; c < 3; ++c) {
    std::size_t count = 0;
    for (int i = 0; i < kImageSize; ++i) {
      for (int depth = 0; depth < 2; ++depth) {
        border[count++] = image.pixel(i, depth)[c];
        border[count++] = image.pixel(i, kImageSize - 1 - depth)[c];
        border[count++] = image.pixel(depth, i)[c];
        border[count++] = image.pixel(kImageSize - 1 - depth, i)[c];
      }
    }
    const auto middle = border.begin() + static_cast<std::ptrdiff_t>(count / 2);
    std::nth_element(border.begin(), middle, border.begin() + static_cast<std::ptrdiff_t>(count));
    plane.base[c] = *middle;
  }
  for (float tolerance : {0.26f, 0.20f, 0.15f, 0.15f}) {
    if (!refit_plane(image, tolerance, plane)) break;
  }
  return plane;
}

/// For each foreground pixel the palette colour that explains it best as a mixture with the background, -1 elsewhere.
inline std::array<int, kPixelCount> label_pixels(const Image& image, float threshold, Segmentation& result) {
  std::array<Rgb, kColourCount> direction;
  std::array<float, kColourCount> inverse;
  for (std::size_t k = 0; k < kColourCount; ++k) {
    const Rgb colour = desaturated(kPalette[k], 0.82f);
    for (std::size_t c = 0; c < 3; ++c) direction[k][c] = colour[c] - result.plane.base[c];
    inverse[k] = 1.0f / std::max(squared_norm(direction[k]), 1e-4f);
  }
  std::array<int, kPixelCount> label;
  for (int i = 0; i < kPixelCount; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const Rgb value = pixel_of(image, i);
    const Rgb model = result.plane.at(i % kImageSize, i / kImageSize);
    const Rgb v = {value[0] - model[0], value[1] - model[1], value[2] - model[2]};
    const float square = squared_norm(v);
    result.contrast[at] = std::sqrt(square);
    label[at] = -1;
    if (result.contrast[at] < threshold) continue;
    float best = 1e9f;
    for (std::size_t k = 0; k < kColourCount; ++k) {
      const float along = dot(v, direction[k]);
      const float alpha = std::clamp(along * inverse[k], 0.0f, 1.2f);
      const float residual = square - 2 * alpha * along + alpha * alpha / inverse[k];
      // An edge pixel is a mixture, so a small alpha is only a weak sign against a colour.
      const float cost = residual + 0.02f * (1 - alpha) * (1 - alpha);
      if (cost < best) {
        best = cost;
        label[at] = static_cast<int>(k);
      }
    }
  }
  return label;
}

/// Replaces each foreground label by the commonest of its 3x3 neighbourhood, the pixel itself counting twice.
inline std::array<int, kPixelCount> smooth_labels(const std::array<int, kPixelCount>& label) {
  std::array<int, kPixelCount> result = label;
  for (int i = 0; i < kPixelCount; ++i) {
    const int own = label[static_cast<std::size_t>(i)];
    if (own < 0) continue;
    std::array<int, kColourCount> votes{};
    ++votes[static_cast<std::size_t>(own)];
    const int x = i % kImageSize;
    const int y = i / kImageSize;
    for (int v = std::max(0, y - 1); v <= std::min(kImageSize - 1, y + 1); ++v) {
      for (int u = std::max(0, x - 1); u <= std::min(kImageSize - 1, x + 1); ++u) {
        const int other = label[static_cast<std::size_t>(v * kImageSize + u)];
        if (other >= 0) ++votes[static_cast<std::size_t>(other)];
      }
    }
    int best = own;
    for (int k = 0; k < kColourCount; ++k) {
      if (votes[static_cast<std::size_t>(k)] > votes[static_cast<std::size_t>(best)]) best = k;
    }
    result[static_cast<std::size_t>(i)] = best;
  }
  return result;
}

/// Calls visit(neighbour) for the 8-connected neighbours of pixel i.
template <class Visit>
void for_neighbours(int i, Visit visit) {
  const int x = i % kImageSize;
  const int y = i / kImageSize;
  for (int v = std::max(0, y - 1); v <= std::min(kImageSize - 1, y + 1); ++v) {
    for (int u = std::max(0, x - 1); u <= std::min(kImageSize - 1, x + 1); ++u) {
      if (u != x || v != y) visit(v * kImageSize + u);
    }
  }
}

/// Joins each small patch to the larger patch that it touches most: rims and mixed edges are part of their object.
inline void merge_fragments(const SegmentOptions& options, Segmentation& result) {
  std::vector<std::size_t> order(result.components.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return result.components[a].pixels.size() < result.components[b].pixels.size();
  });
  std::vector<int> contact(result.components.size());
  for (const std::size_t small : order) {
    std::vector<int>& pixels = result.components[small].pixels;
    std::fill(contact.begin(), contact.end(), 0);
    for (const int i : pixels) {
      for_neighbours(i, [&](int j) {
        const int other = result.owner[static_cast<std::size_t>(j)];
        if (other >= 0 && static_cast<std::size_t>(other) != small) ++contact[static_cast<std::size_t>(other)];
      });
    }
    const auto touched = std::max_element(contact.begin(), contact.end());
    if (touched == contact.end() || *touched == 0) continue;
    const auto target = static_cast<std::size_t>(touched - contact.begin());
    std::vector<int>& larger = result.components[target].pixels;
    const bool is_fragment = static_cast<int>(pixels.size()) < options.smallest_object ||
                             static_cast<double>(pixels.size()) < 0.3 * static_cast<double>(larger.size());
    if (!is_fragment || larger.size() < pixels.size()) continue;
    for (const int i : pixels) result.owner[static_cast<std::size_t>(i)] = static_cast<int>(target);
    larger.insert(larger.end(), pixels.begin(), pixels.end());
    pixels.clear();
  }
}

}  // namespace detail

/// Segments a 32x32 picture. Throws std::invalid_argument for another size.
inline Segmentation segment(const Image& image, const SegmentOptions& options = {}) {
  if (image.width != kImageSize || image.height != kImageSize || image.rgb.size() != std::size_t{3} * kPixelCount) {
    throw std::invalid_argument("[tinyworld::segment] the picture must be 32 x 32 x 3");
  }
  Segmentation result;
  result.plane = detail::fit_background(image);
  const auto label = detail::smooth_labels(detail::label_pixels(image, options.contrast_threshold, result));
  result.owner.fill(-1);
  std::vector<int> stack;
  for (int start = 0; start < kPixelCount; ++start) {
    const int wanted = label[static_cast<std::size_t>(start)];
    if (wanted < 0 || result.owner[static_cast<std::size_t>(start)] >= 0) continue;
    const auto id = static_cast<int>(result.components.size());
    Component component;
    stack.assign(1, start);
    result.owner[static_cast<std::size_t>(start)] = id;
    while (!stack.empty()) {
      const int i = stack.back();
      stack.pop_back();
      component.pixels.push_back(i);
      detail::for_neighbours(i, [&](int j) {
        const auto at = static_cast<std::size_t>(j);
        if (label[at] != wanted || result.owner[at] >= 0) return;
        result.owner[at] = id;
        stack.push_back(j);
      });
    }
    result.components.push_back(std::move(component));
  }
  detail::merge_fragments(options, result);
  std::stable_sort(result.components.begin(), result.components.end(),
                   [](const Component& a, const Component& b) { return a.pixels.size() > b.pixels.size(); });
  std::size_t kept = 0;
  for (std::size_t id = 0; id < result.components.size(); ++id) {
    const bool is_object = static_cast<int>(result.components[id].pixels.size()) >= options.smallest_object;
    if (is_object) kept = id + 1;
    for (const int i : result.components[id].pixels) {
      result.owner[static_cast<std::size_t>(i)] = is_object ? static_cast<int>(id) : -2;
    }
  }
  result.components.resize(kept);
  return result;
}

}  // namespace tinyworld
