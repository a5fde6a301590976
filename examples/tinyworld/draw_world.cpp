// SPDX-License-Identifier: MIT
// Draws a sheet of captioned scenes as one PNG and prints their captions with the scorer's opinion.
#include <png.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "world/flaws.hpp"
#include "world/scorer.hpp"

namespace {

constexpr int kColumns = 8;
constexpr int kZoom = 4;
constexpr int kCell = (tinyworld::kImageSize + 2) * kZoom;

void paste(const tinyworld::Image& image, int cell, int sheet_width, std::vector<unsigned char>& sheet) {
  const int left = (cell % kColumns) * kCell + kZoom;
  const int top = (cell / kColumns) * kCell + kZoom;
  for (int y = 0; y < tinyworld::kImageSize * kZoom; ++y) {
    for (int x = 0; x < tinyworld::kImageSize * kZoom; ++x) {
      const float* pixel = image.pixel(x / kZoom, y / kZoom);
      const auto at = 3 * (static_cast<std::size_t>(top + y) * static_cast<std::size_t>(sheet_width) +
                           static_cast<std::size_t>(left + x));
      for (std::size_t c = 0; c < 3; ++c) sheet[at + c] = static_cast<unsigned char>(pixel[c] * 255.0f + 0.5f);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || std::strcmp(argv[1], "--help") == 0) {
    std::printf(
        "usage: draw_world OUT.png [SEED] [--flawed]\n"
        "Draws 64 captioned scenes of the tiny world; --flawed draws them as a weak generator would.\n");
    return argc < 2 ? 2 : 0;
  }
  const bool flawed = std::strcmp(argv[argc - 1], "--flawed") == 0;
  const auto seed = static_cast<std::uint64_t>(argc > 2 ? std::atoll(argv[2]) : 0);
  constexpr int kCount = 64;
  const int width = kColumns * kCell;
  const int height = kCount / kColumns * kCell;
  std::vector<unsigned char> sheet(std::size_t{3} * static_cast<std::size_t>(width) * static_cast<std::size_t>(height),
                                   128);
  for (int i = 0; i < kCount; ++i) {
    const auto index = static_cast<std::uint64_t>(i);
    const tinyworld::CaptionedScene sample = tinyworld::sample_captioned(seed, index, tinyworld::Split::train);
    lpo::RandomStream random(seed, 0x666c6177u, static_cast<std::uint32_t>(i));
    const tinyworld::Image image = flawed ? tinyworld::attempt(random, sample.scene) : tinyworld::render(sample.scene);
    paste(image, i, width, sheet);
    const tinyworld::Measurement result = tinyworld::score_image(image, sample.caption);
    std::printf("%2d  score %.2f  accuracy %.2f  aesthetic %4.1f  %s\n", i, static_cast<double>(result.score),
                static_cast<double>(result.accuracy), static_cast<double>(result.aesthetic), sample.caption.c_str());
  }
  png_image file{};
  file.version = PNG_IMAGE_VERSION;
  file.width = static_cast<png_uint_32>(width);
  file.height = static_cast<png_uint_32>(height);
  file.format = PNG_FORMAT_RGB;
  if (png_image_write_to_file(&file, argv[1], 0, sheet.data(), 0, nullptr) == 0) {
    std::fprintf(stderr, "draw_world: cannot write %s: %s\n", argv[1], file.message);
    return 1;
  }
  return 0;
}
