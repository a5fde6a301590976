// SPDX-License-Identifier: MIT
// What the tests of training programs share: arguments with changes, and what txt2img draws with what a run left.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include <lpo/io/png.hpp>

#include "../io/temporary_directory.hpp"
#include "program.hpp"

/// `arguments` and `more`, in which an option that is named again has its new value.
inline std::vector<std::string> changed(std::vector<std::string> arguments, const std::vector<std::string>& more) {
  for (std::size_t i = 0; i < more.size(); ++i) {
    const auto found = std::find(arguments.begin(), arguments.end(), more[i]);
    if (more[i].starts_with("--") && found != arguments.end() && i + 1 < more.size())
      *(found + 1) = more[++i];
    else
      arguments.push_back(more[i]);
  }
  return arguments;
}

#if defined(LPO_PROGRAM_TXT2IMG)
/// The picture of seed 42 that a model makes of "a red circle", with the settings of the runs' validation pictures.
inline lpo::RgbImage draw_circle(const TemporaryDirectory& directory, const std::string& model,
                                 const std::vector<std::string>& more = {}) {
  static int number = 0;
  const std::string out = directory.file("drawn-" + std::to_string(number++));
  std::vector<std::string> all = {"--pretrained_model_name_or_path", model, "--prompt", "a red circle",
                                  "--num_inference_steps", "4", "--guidance_scale", "2", "--scheduler", "ddim",
                                  "--seed", "42", "--threads", "1", "--output_dir", out};
  all.insert(all.end(), more.begin(), more.end());
  const auto run = run_program(LPO_PROGRAM_TXT2IMG, all);
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  return lpo::read_png(out + "/00000.png").image;
}
#endif

/// Of any channel of any pixel, out of 255.
inline int largest_difference(const lpo::RgbImage& a, const lpo::RgbImage& b) {
  REQUIRE(a.pixels.size() == b.pixels.size());
  int worst = 0;
  for (std::size_t i = 0; i < a.pixels.size(); ++i)
    worst = std::max(worst, std::abs(int{a.pixels[i]} - int{b.pixels[i]}));
  return worst;
}
