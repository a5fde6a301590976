// SPDX-License-Identifier: MIT
// before_after.png: pairs of pictures from the same noise, enlarged, with their captions and scores.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <lpo/io/image.hpp>

#include "../common/bitmap_font.hpp"
#include "../common/svg_plot.hpp"
#include "report_data.hpp"

namespace tinyworld {

/// The picture in 8 bits, every pixel as a square of `zoom` x `zoom`.
inline lpo::RgbImage enlarged(const Image& image, int zoom = 1) {
  lpo::RgbImage out(image.width * zoom, image.height * zoom);
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      const float* from = image.pixel(x / zoom, y / zoom);
      for (int c = 0; c < 3; ++c)
        out.at(x, y)[c] = static_cast<std::uint8_t>(std::lround(255.0f * std::clamp(from[c], 0.0f, 1.0f)));
    }
  }
  return out;
}

namespace detail {

inline void paste(const lpo::RgbImage& image, int left, int top, lpo::RgbImage& sheet) {
  for (int y = 0; y < image.height; ++y) std::copy_n(image.at(0, y), 3 * image.width, sheet.at(left, top + y));
}

/// A thin grey outline, so that a white picture has an edge.
inline void frame(int left, int top, int side, lpo::RgbImage& sheet) {
  for (int i = -1; i <= side; ++i) {
    for (std::uint8_t* pixel : {sheet.at(left + i, top - 1), sheet.at(left + i, top + side),
                                sheet.at(left - 1, top + i), sheet.at(left + side, top + i)})
      std::fill_n(pixel, 3, std::uint8_t{214});
  }
}

}  // namespace detail

/// Up to `most` pairs in rows of `columns`: the caption above, the scores below.
inline lpo::RgbImage draw_grid(const std::vector<BeforeAfter>& grid, int columns = 3, std::size_t most = 12) {
  constexpr examples::Rgb8 ink{38, 38, 36}, faint{128, 126, 120}, better{16, 116, 66}, worse{178, 52, 36};
  constexpr int zoom = 5, scale = 2, side = kImageSize * zoom, gap = 6, space = 40, margin = 28;
  constexpr int line = (examples::kFontRows + 2) * scale, pair = 2 * side + gap;
  const std::size_t count = std::min(grid.size(), most);
  const int across = std::max(1, std::min(columns, static_cast<int>(count)));

  std::vector<std::vector<std::string>> captions;
  std::vector<int> row_lines;
  for (std::size_t i = 0; i < count; ++i) {
    captions.push_back(examples::wrap_text(grid[i].caption, pair / scale));
    if (i % static_cast<std::size_t>(across) == 0) row_lines.push_back(0);
    row_lines.back() = std::max(row_lines.back(), static_cast<int>(captions.back().size()));
  }
  const auto row_height = [&](int lines) { return lines * line + side + 8 + line + space / 2; };
  int height = 2 * margin - space / 2 + 2 * line;
  for (const int lines : row_lines) height += row_height(lines);

  lpo::RgbImage sheet(2 * margin + across * (pair + space) - space, height, 250);
  examples::draw_text(sheet, margin, margin, "same caption, same noise: before > after", faint, scale);
  int top = margin + 2 * line;
  for (std::size_t i = 0; i < count; ++i) {
    const int column = static_cast<int>(i) % across;
    const int left = margin + column * (pair + space);
    const int lines = row_lines[i / static_cast<std::size_t>(across)];
    // Captions end at the pictures, whatever their number of lines.
    int y = top + (lines - static_cast<int>(captions[i].size())) * line;
    for (const std::string& text : captions[i]) {
      examples::draw_text(sheet, left, y, text, ink, scale);
      y += line;
    }
    const int pictures = top + lines * line;
    detail::paste(enlarged(grid[i].before, zoom), left, pictures, sheet);
    detail::paste(enlarged(grid[i].after, zoom), left + side + gap, pictures, sheet);
    detail::frame(left, pictures, side, sheet);
    detail::frame(left + side + gap, pictures, side, sheet);
    const int below = pictures + side + 8;
    const std::string before = examples::fixed_text(grid[i].score_before, 2);
    const std::string after = examples::fixed_text(grid[i].score_after, 2);
    examples::draw_text(sheet, left, below, "before " + before, faint, scale);
    examples::draw_text(sheet, left + side + gap, below, "after " + after,
                        after == before                              ? faint
                        : grid[i].score_after > grid[i].score_before ? better
                                                                     : worse,
                        scale);
    if (column == across - 1) top += row_height(lines);
  }
  return sheet;
}

}  // namespace tinyworld
