// SPDX-License-Identifier: MIT
// RgbImage: 8-bit pictures, and their relation to the float images that networks see.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

/// Red, green, blue, 8 bits each, rows from the top: `pixels` is [height, width, 3].
struct RgbImage {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> pixels;

  RgbImage() = default;
  RgbImage(int image_width, int image_height, std::uint8_t value = 0) : width(image_width), height(image_height) {
    if (width < 0 || height < 0) throw ValueError(message("[image] size ", width, " x ", height, " is negative"));
    pixels.assign(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3, value);
  }

  std::uint8_t* at(int x, int y) { return pixels.data() + offset(x, y); }
  const std::uint8_t* at(int x, int y) const { return pixels.data() + offset(x, y); }

  friend bool operator==(const RgbImage&, const RgbImage&) = default;

 private:
  std::size_t offset(int x, int y) const {
    return (static_cast<std::size_t>(y) * static_cast<std::size_t>(width) + static_cast<std::size_t>(x)) * 3;
  }
};

/// The picture of values [height, width, 3] in [-1, 1]; values outside are clamped, NaN is black. Rounds as diffusers
/// does.
inline RgbImage image_of_values(const float* values, int width, int height) {
  RgbImage image(width, height);
  for (std::size_t i = 0; i < image.pixels.size(); ++i) {
    const float unit = std::clamp(values[i] * 0.5f + 0.5f, 0.0f, 1.0f);
    image.pixels[i] = unit >= 0.0f ? static_cast<std::uint8_t>(std::nearbyint(unit * 255.0f)) : std::uint8_t{0};
  }
  return image;
}

/// Values [height, width, 3] in [-1, 1] of a picture.
inline void values_of_image(const RgbImage& image, float* values) {
  for (std::size_t i = 0; i < image.pixels.size(); ++i) values[i] = static_cast<float>(image.pixels[i]) / 127.5f - 1.0f;
}

/// Pictures side by side, row by row, `columns` in a row, with `gap` pixels of `background` between them. The cells
/// have the size of the largest picture.
inline RgbImage tile_images(std::span<const RgbImage> images, int columns, int gap = 2, std::uint8_t background = 255) {
  if (columns < 1 || gap < 0)
    throw ValueError(message("[tile_images] ", columns, " columns with gap ", gap, "; expected at least 1 and 0"));
  int cell_width = 0;
  int cell_height = 0;
  for (const RgbImage& image : images) {
    cell_width = std::max(cell_width, image.width);
    cell_height = std::max(cell_height, image.height);
  }
  const int count = static_cast<int>(images.size());
  const int used = std::min(columns, count);
  const int rows = (count + columns - 1) / columns;
  RgbImage grid(used == 0 ? 0 : used * (cell_width + gap) - gap, rows == 0 ? 0 : rows * (cell_height + gap) - gap,
                background);
  for (int i = 0; i < count; ++i) {
    const RgbImage& image = images[static_cast<std::size_t>(i)];
    const int left = i % columns * (cell_width + gap);
    const int top = i / columns * (cell_height + gap);
    for (int y = 0; y < image.height; ++y) std::copy_n(image.at(0, y), 3 * image.width, grid.at(left, top + y));
  }
  return grid;
}

}  // namespace lpo::inline LPO_ABI
