// SPDX-License-Identifier: MIT
// Bilinear resizing with antialiasing, bit for bit as Pillow before 13 does it: the width first, then the height.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/io/image.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// What one output position takes from the input: weights in fixed point for `weights.size()` positions from `first`.
struct ResizeTap {
  int first = 0;
  std::vector<int> weights;
};

/// Bits after the point of the weights: products with 8-bit values, and their sums, fit 32 bits.
inline constexpr int resize_bits = 22;

/// A triangle around each output's centre, widened by the scale when the picture shrinks.
inline std::vector<ResizeTap> resize_taps(int from, int to) {
  const double scale = static_cast<double>(from) / to, reach = std::max(scale, 1.0);
  std::vector<ResizeTap> taps(static_cast<std::size_t>(to));
  for (int i = 0; i < to; ++i) {
    const double centre = (i + 0.5) * scale;
    ResizeTap& tap = taps[static_cast<std::size_t>(i)];
    tap.first = std::max(0, static_cast<int>(centre - reach + 0.5));
    const int last = std::min(from, static_cast<int>(centre + reach + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int x = tap.first; x < last; ++x) {
      weights.push_back(std::max(0.0, 1.0 - std::fabs((x - centre + 0.5) / reach)));
      sum += weights.back();
    }
    for (const double weight : weights)
      tap.weights.push_back(static_cast<int>(0.5 + weight / sum * static_cast<double>(1 << resize_bits)));
  }
  return taps;
}

/// One value from the line that begins at `line`, whose values are `stride` apart.
inline std::uint8_t resized_value(const ResizeTap& tap, const std::uint8_t* line, std::size_t stride) {
  int sum = 1 << (resize_bits - 1);
  for (std::size_t k = 0; k < tap.weights.size(); ++k)
    sum += tap.weights[k] * line[(static_cast<std::size_t>(tap.first) + k) * stride];
  return static_cast<std::uint8_t>(std::clamp(sum >> resize_bits, 0, 255));
}

}  // namespace detail

/// The whole picture at another size; its shape is not kept. Rounds to 8 bits after each pass. Pillow from
/// 13 on begins with the axis that costs less, which may change the last bit. ValueError if either picture is empty.
inline RgbImage resize_image(const RgbImage& image, int width, int height) {
  if (image.width < 1 || image.height < 1 || width < 1 || height < 1)
    throw ValueError(message("[resize_image] ", image.width, " x ", image.height, " to ", width, " x ", height,
                             "; expected at least one pixel"));
  const auto row_bytes = [](int pixels) { return static_cast<std::size_t>(pixels) * 3; };
  RgbImage narrow(width, image.height), out(width, height);
  const auto columns = detail::resize_taps(image.width, width), rows = detail::resize_taps(image.height, height);
  for (int y = 0; y < image.height; ++y)
    for (int x = 0; x < width; ++x)
      for (std::size_t c = 0; c < 3; ++c)
        narrow.at(x, y)[c] = detail::resized_value(columns[static_cast<std::size_t>(x)], image.at(0, y) + c, 3);
  for (int y = 0; y < height; ++y)
    for (std::size_t i = 0; i < row_bytes(width); ++i)
      out.at(0, y)[i] =
          detail::resized_value(rows[static_cast<std::size_t>(y)], narrow.pixels.data() + i, row_bytes(width));
  return out;
}

}  // namespace lpo::inline LPO_ABI
