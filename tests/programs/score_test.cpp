// SPDX-License-Identifier: MIT
// score with a reward model of the tiny world: pictures and latents, formats, the plot, and what is refused.
#ifdef LPO_PROGRAM_SCORE
#include <doctest/doctest.h>

#include <cstdio>

#include <lpo/io/json.hpp>
#include <lpo/io/npy.hpp>
#include <lpo/io/png.hpp>

#include "../io/temporary_directory.hpp"
#include "program.hpp"
#include "tiny_reward_model.hpp"

namespace {

/// A picture of stripes, and a latent twice.
struct Inputs {
  TemporaryDirectory directory;
  std::string lrm = directory.file("lrm"), picture = directory.file("stripes.png"),
              latents = directory.file("latents.npy");

  Inputs() {
    write_reward_model(lrm);
    lpo::RgbImage image(40, 24);
    for (int y = 0; y < image.height; ++y)
      for (int x = 0; x < image.width; ++x) image.at(x, y)[x / 8 % 3] = 255;
    lpo::write_png(picture, image);
    std::vector<float> values;
    for (int i = 0; i < 2 * 4 * 8 * 8; ++i) values.push_back(0.1f * static_cast<float>(i % 256 % 17 - 8));
    lpo::write_npy(latents, values.data(), {2, 4, 8, 8});
  }

  ProgramResult score(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(),
                     {"--lrm", lrm, "--pretrained_model_name_or_path", tiny_model, "--threads", "1"});
    return run_program(LPO_PROGRAM_SCORE, arguments);
  }
};

/// The part of what was printed that is not progress.
std::string from(const std::string& printed, const std::string& begin) {
  const std::size_t at = printed.find(begin);
  return at == std::string::npos ? "" : printed.substr(at);
}

}  // namespace

TEST_CASE("score prints the same numbers as table, CSV and JSON, and draws them") {
  const Inputs inputs;
  const std::string plot = inputs.directory.file("plot.svg");
  const std::vector<std::string> what = {inputs.picture, inputs.latents,
                                         "--timesteps",  "201,1",
                                         "--prompt",     "a red circle",
                                         "--prompt",     "a \"blue\" square, small",
                                         "--seed",       "3",
                                         "--plot",       plot};
  const auto with = [&](const std::string& format) {
    auto arguments = what;
    arguments.insert(arguments.end(), {"--format", format});
    return inputs.score(arguments);
  };
  const auto table = with("table");
  CAPTURE(table.printed);
  REQUIRE(table.status == 0);
  const std::string csv = from(with("csv").printed, "input,prompt,timestep,score\n");
  CHECK(csv == from(with("csv").printed, "input,"));  // the same every time
  const auto json = lpo::parse_json<lpo::SortedJson>(from(with("json").printed, "[\n"), "test", "printed");
  REQUIRE(json.size() == 6);  // three inputs, two prompts
  CHECK(json[0]["input"] == inputs.picture);
  CHECK(json[2]["input"] == inputs.latents + "[0]");
  CHECK(json[0]["timesteps"] == std::vector<int>{201, 1});
  for (const auto& entry : json) {
    REQUIRE(entry["scores"].size() == 2);
    for (const auto& value : entry["scores"]) {
      char text[32];
      std::snprintf(text, sizeof text, "%.4f", value.get<double>());
      CHECK(has_part(csv, std::string(text) + "\n"));
      CHECK(has_part(table.printed, text));
    }
  }
  CHECK(json[2]["scores"] == json[4]["scores"]);  // two equal latents see equal noise
  CHECK(json[0]["scores"] != json[1]["scores"]);
  CHECK(has_part(csv, inputs.picture + ",\"a \"\"blue\"\" square, small\",201,"));
  const std::string svg = inputs.directory.read("plot.svg");
  CHECK(svg.starts_with("<svg xmlns="));
  CHECK(has_part(svg, "stripes.png: a red circle"));
}

TEST_CASE("score takes latents as they are where they are noisy already") {
  const Inputs inputs;
  const auto run = [&](const std::string& seed, const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {inputs.latents, "--prompt", "x",      "--format", "csv",
                                          "--timesteps",  "501",      "--seed", seed};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return from(inputs.score(arguments).printed, "input,");
  };
  CHECK(run("1", {"--noisy_latents"}) == run("2", {"--noisy-latents"}));
  CHECK_FALSE(run("1", {}) == run("2", {}));
  CHECK_FALSE(run("1", {"--noises", "2"}) == run("1", {}));
  CHECK_FALSE(run("1", {}).empty());
}

TEST_CASE("score takes the base model from a single file too") {
  const Inputs inputs;
  const std::string file = inputs.directory.file("model.safetensors");
  REQUIRE(run_program(LPO_PROGRAM_CONVERT, {tiny_model, file}).status == 0);
  const std::vector<std::string> what = {inputs.picture, "--prompt", "a red circle", "--format", "csv"};
  auto arguments = what;
  arguments.insert(arguments.begin(), {"--lrm", inputs.lrm, "--pretrained_model_name_or_path", file, "--threads", "1",
                                       "--tokenizer", tiny_model});
  const std::string scores = from(run_program(LPO_PROGRAM_SCORE, arguments).printed, "input,");
  CHECK_FALSE(scores.empty());
  CHECK(scores == from(inputs.score(what).printed, "input,"));
}

TEST_CASE("score uses a reward model as it was trained, and says so when it is told otherwise") {
  const Inputs inputs;
  const auto run = [&](const std::vector<std::string>& more) {
    auto arguments = std::vector<std::string>{inputs.latents, "--prompt", "a red circle", "--format", "csv"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return inputs.score(arguments).printed;
  };
  const auto scores = [&](const std::vector<std::string>& more) { return from(run(more), "input,"); };
  const std::string usual = scores({}), plain = scores({"--lrm_guidance", "1"});
  CHECK_FALSE(plain == usual);
  CHECK_FALSE(scores({"--lrm_multi_scale_cfg", "true"}) == usual);
  CHECK_FALSE(has_part(run({}), "note:"));
  CHECK(has_part(run({"--lrm_guidance", "1"}), "is used otherwise than it was trained: --lrm_guidance 1 (trained with 7.5)"));
  CHECK(has_part(run({"--lrm_multi_scale", "false"}),
                 "[score] --lrm_multi_scale: " + inputs.lrm + " was trained with features of every level"));

  write_reward_model(inputs.lrm, {.guidance = 1});  // the same weights
  CHECK(scores({}) == plain);
  CHECK(scores({"--lrm_guidance", "7.5"}) == usual);

  // A folder from before these settings were kept: the released models' are assumed, and the note says so.
  REQUIRE(std::remove((inputs.lrm + "/lrm_config.json").c_str()) == 0);
  CHECK(scores({}) == usual);
  CHECK(has_part(run({}), "assumed: --lrm_guidance 7.5, --lrm_multi_scale true, --lrm_multi_scale_cfg false"));

  write_reward_model(inputs.lrm, {.multi_scale = false});
  const std::string single = scores({});
  CHECK_FALSE(single.empty());
  CHECK_FALSE(single == usual);
  REQUIRE(std::remove((inputs.lrm + "/lrm_config.json").c_str()) == 0);
  CHECK(scores({}) == single);  // the head's width tells
}

TEST_CASE("score says what is wrong") {
  const Inputs inputs;
  CHECK(has_part(inputs.score({inputs.picture}).printed, "[score] there is no prompt; give --prompt or --prompt_file"));
  CHECK(has_part(inputs.score({inputs.directory.write("x.txt", "hello"), "--prompt", "x"}).printed,
                 "x.txt: is no PNG, JPEG, .npy or .safetensors file"));
  CHECK(has_part(inputs.score({inputs.picture, "--prompt", "x", "--timesteps", "1000"}).printed,
                 "timestep 1000 is outside 0..999"));
  CHECK(has_part(inputs.score({inputs.picture, "--prompt", "x", "--lrm_guidance", "nan"}).printed,
                 "--lrm_guidance: nan is not a finite number"));
  CHECK(has_part(inputs.score({inputs.picture, "--prompt", "x", "--plot", "a.pdf"}).printed, "plots are SVG files"));
  const float few[] = {1, 2, 3, 4};
  lpo::write_npy(inputs.latents, few, {4});
  CHECK(has_part(inputs.score({inputs.latents, "--prompt", "x"}).printed,
                 "has shape [4], expected latents [channels, h, w] or [n, channels, h, w]"));
  lpo::write_npy(inputs.latents, few, {1, 2, 2});
  CHECK(has_part(inputs.score({inputs.latents, "--prompt", "x"}).printed, "expected 4 channels of 2 x 2"));
  CHECK(inputs.score({"--wrong"}).status != 0);
}
#endif
