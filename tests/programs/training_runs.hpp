// SPDX-License-Identifier: MIT
// What the tests of training programs share: arguments of short runs, and what txt2img draws with what a run left.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include <lpo/io/png.hpp>

#include "../io/temporary_directory.hpp"
#include "program.hpp"

/// "--rank 2" as {"--rank", "2"}, and `more` behind it.
inline std::vector<std::string> words(const std::string& text, const std::vector<std::string>& more = {}) {
  std::istringstream stream(text);
  std::vector<std::string> all;
  for (std::string word; stream >> word;) all.push_back(word);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

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

/// Four prompts in a file, and the arguments of a short run of train_lpo on them into the folder `out`.
inline std::string write_prompts(const TemporaryDirectory& directory) {
  return directory.write("prompts.txt", "a red circle\na blue square\na green triangle\na red square\n");
}
inline std::vector<std::string> lpo_arguments(const std::string& prompts, const std::string& out) {
  return words(
      "--threads 1 --sample_batch_size 2 --num_inference_steps 4 --num_candidates 2 --guidance_scale 2 "
      "--threshold_mode const --threshold_const 0 --train_batch_size 3 --rank 2 --learning_rate 5e-3 "
      "--checkpointing_iterations 1",
      {"--pretrained_model_name_or_path", tiny_model, "--prompt_file", prompts, "--output_dir", out});
}

#if defined(LPO_PROGRAM_TXT2IMG)
/// The picture of seed 42 that a model makes of "a red circle", with the settings of the runs' validation pictures.
inline lpo::RgbImage draw_circle(const TemporaryDirectory& directory, const std::string& model,
                                 const std::vector<std::string>& more = {}) {
  static int number = 0;
  const std::string out = directory.file("drawn-" + std::to_string(number++));
  std::vector<std::string> all = {"--pretrained_model_name_or_path",
                                  model,
                                  "--prompt",
                                  "a red circle",
                                  "--num_inference_steps",
                                  "4",
                                  "--guidance_scale",
                                  "2",
                                  "--scheduler",
                                  "ddim",
                                  "--seed",
                                  "42",
                                  "--threads",
                                  "1",
                                  "--output_dir",
                                  out};
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
