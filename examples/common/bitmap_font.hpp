// SPDX-License-Identifier: MIT
// A bitmap font for captions under small pictures: lower case, digits and a little punctuation, drawn into an RgbImage.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <lpo/io/image.hpp>

namespace examples {

using Rgb8 = std::array<std::uint8_t, 3>;

inline constexpr int kFontRows = 9;  ///< seven above the baseline, two below

namespace detail {

/// Letters side by side, one blank column between them; '#' is ink.
struct GlyphSheet {
  std::string_view letters;
  std::array<std::string_view, kFontRows> rows;
};

inline constexpr std::array<GlyphSheet, 4> kGlyphSheets{{
    {"abcdefghijklm",
     {"..... #.... .... ....# ..... ..## ..... #.... # ..# #... #. .....",
      "..... #.... .... ....# ..... .#.. ..... #.... . ... #... #. .....",
      ".###. #.##. .### .##.# .###. #### .#### #.##. # ..# #..# #. ####.",
      "....# ##..# #... #..## #...# .#.. #...# ##..# # ..# #.#. #. #.#.#",
      ".#### #...# #... #...# ##### .#.. #...# #...# # ..# ##.. #. #.#.#",
      "#...# #...# #... #...# #.... .#.. #...# #...# # ..# #.#. #. #.#.#",
      ".#### ####. .### .#### .###. .#.. .#### #...# # ..# #..# .# #.#.#",
      "..... ..... .... ..... ..... .... ....# ..... . ..# .... .. .....",
      "..... ..... .... ..... ..... .... .###. ..... . ##. .... .. ....."}},
    {"nopqrstuvwxyz",
     {"..... ..... ..... ..... .... ..... .#.. ..... ..... ..... ..... ..... .....",
      "..... ..... ..... ..... .... ..... .#.. ..... ..... ..... ..... ..... .....",
      "#.##. .###. ####. .#### #.## .#### #### #...# #...# #...# #...# #...# #####",
      "##..# #...# #...# #...# ##.. #.... .#.. #...# #...# #.#.# .#.#. #...# ...#.",
      "#...# #...# #...# #...# #... .###. .#.. #...# #...# #.#.# ..#.. #...# ..#..",
      "#...# #...# ##..# #..## #... ....# .#.. #..## .#.#. #.#.# .#.#. #...# .#...",
      "#...# .###. #.##. .##.# #... ####. ..## .##.# ..#.. .#.#. #...# .#### #####",
      "..... ..... #.... ....# .... ..... .... ..... ..... ..... ..... ....# .....",
      "..... ..... #.... ....# .... ..... .... ..... ..... ..... ..... .###. ....."}},
    {"0123456789.,-",
     {".###. .#. .###. .###. ...#. ##### .###. ##### .###. .###. . .. ...",
      "#...# ##. #...# #...# ..##. #.... #.... ....# #...# #...# . .. ...",
      "#..## .#. ....# ....# .#.#. ####. #.... ...#. #...# #...# . .. ...",
      "#.#.# .#. ...#. ..##. #..#. ....# ####. ..#.. .###. .#### . .. ...",
      "##..# .#. ..#.. ....# ##### ....# #...# ..#.. #...# ....# . .. ###",
      "#...# .#. .#... #...# ...#. #...# #...# .#... #...# ....# . .. ...",
      ".###. ### ##### .###. ...#. .###. .###. .#... .###. .###. # .# ...",
      "..... ... ..... ..... ..... ..... ..... ..... ..... ..... . .# ...",
      "..... ... ..... ..... ..... ..... ..... ..... ..... ..... . #. ..."}},
    {":'%+/()>?",
     {". # ##..# ..... ....# .# #. ..... .###.", ". # ##..# ..... ....# #. .# ..... #...#",
      ". . ...#. ..#.. ...#. #. .# ..#.. ....#", "# . ..#.. ..#.. ..#.. #. .# ...#. ...#.",
      ". . .#... ##### .#... #. .# ##### ..#..", ". . #..## ..#.. #.... #. .# ...#. .....",
      "# . #..## ..#.. #.... .# #. ..#.. ..#..", ". . ..... ..... ..... .. .. ..... .....",
      ". . ..... ..... ..... .. .. ..... ....."}},
}};

/// The rows of one letter; false for a letter that the font lacks. Upper case is drawn as lower case.
inline bool find_glyph(char letter, std::array<std::string_view, kFontRows>& rows) {
  if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
  for (const GlyphSheet& sheet : kGlyphSheets) {
    std::size_t column = 0;
    for (const char candidate : sheet.letters) {
      const std::size_t width = std::min(sheet.rows[0].find(' ', column), sheet.rows[0].size()) - column;
      if (candidate == letter) {
        for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = sheet.rows[i].substr(column, width);
        return true;
      }
      column += width + 1;
    }
  }
  return false;
}

inline constexpr int kSpaceWidth = 3;

}  // namespace detail

/// Width of `text` in pixels at scale 1.
inline int text_width(std::string_view text) {
  int width = 0;
  std::array<std::string_view, kFontRows> rows;
  for (const char letter : text)
    width += (detail::find_glyph(letter, rows) ? static_cast<int>(rows[0].size()) : detail::kSpaceWidth) + 1;
  return std::max(0, width - 1);
}

/// Draws `text` with its upper left corner at (left, top), every font pixel `scale` pixels wide. What lies outside the
/// picture is cut off.
inline void draw_text(lpo::RgbImage& image, int left, int top, std::string_view text, Rgb8 ink, int scale = 1) {
  std::array<std::string_view, kFontRows> rows;
  for (const char letter : text) {
    const bool known = detail::find_glyph(letter, rows);
    const int width = known ? static_cast<int>(rows[0].size()) : detail::kSpaceWidth;
    for (int y = 0; known && y < kFontRows * scale; ++y) {
      for (int x = 0; x < width * scale; ++x) {
        if (rows[static_cast<std::size_t>(y / scale)][static_cast<std::size_t>(x / scale)] != '#') continue;
        if (left + x < 0 || left + x >= image.width || top + y < 0 || top + y >= image.height) continue;
        std::copy(ink.begin(), ink.end(), image.at(left + x, top + y));
      }
    }
    left += (width + 1) * scale;
  }
}

/// Breaks `text` at spaces into lines at most `width` pixels wide at scale 1; a longer word gets a line of its own.
inline std::vector<std::string> wrap_text(std::string_view text, int width) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(std::min(text.size(), end + 1));
    if (word.empty()) continue;
    std::string longer = lines.empty() ? std::string() : lines.back();
    if (!longer.empty()) longer += ' ';
    longer += word;
    if (!lines.empty() && text_width(longer) <= width)
      lines.back() = longer;
    else
      lines.emplace_back(word);
  }
  return lines;
}

}  // namespace examples
