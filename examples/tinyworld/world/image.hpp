// SPDX-License-Identifier: MIT
// Image: a small RGB picture in floating point, the currency of the tiny world.
#pragma once

#include <cstddef>
#include <vector>

namespace tinyworld {

/// Width and height of every picture of the tiny world, in pixels.
inline constexpr int kImageSize = 32;

/// RGB picture, channels last, values in [0, 1].
struct Image {
  int width = kImageSize;
  int height = kImageSize;
  std::vector<float> rgb = std::vector<float>(std::size_t{3} * kImageSize * kImageSize);  // [h, w, 3]

  float* pixel(int x, int y) { return rgb.data() + 3 * (static_cast<std::size_t>(y) * width_size() + x_size(x)); }
  const float* pixel(int x, int y) const {
    return rgb.data() + 3 * (static_cast<std::size_t>(y) * width_size() + x_size(x));
  }

 private:
  std::size_t width_size() const { return static_cast<std::size_t>(width); }
  static std::size_t x_size(int x) { return static_cast<std::size_t>(x); }
};

}  // namespace tinyworld
