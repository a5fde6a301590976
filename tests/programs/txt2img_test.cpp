// SPDX-License-Identifier: MIT
// txt2img on the tiny world: pictures and what is written with them, seeds, batches, the plan, and wrong options.
#ifdef LPO_PROGRAM_TXT2IMG
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <utility>

#include <lpo/io/json.hpp>
#include <lpo/io/png.hpp>
#include <lpo/io/safetensors_writer.hpp>

#include <txt2img/pictures.hpp>

#include "../io/temporary_directory.hpp"
#include "program.hpp"

namespace {

ProgramResult run_txt2img(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"--pretrained_model_name_or_path", tiny_model, "--threads", "1"});
  return run_program(LPO_PROGRAM_TXT2IMG, arguments);
}

}  // namespace

TEST_CASE("txt2img writes pictures with their settings, a grid and metadata") {
  const TemporaryDirectory directory;
  const std::string out = directory.file("out");
  const auto run = run_txt2img({"--prompt", "a red circle", "--negative-prompt", "blue", "--num_inference_steps", "5",
                            "--guidance-scale", "3.5", "--num_images_per_prompt", "2", "--seed", "11", "--scheduler",
                            "Euler", "--output_dir", out});
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  CHECK(has_part(run.printed, out + "/00000.png\n"));
  CHECK(has_part(run.printed, "10/10"));  // progress: two pictures, five steps each
  const auto second = lpo::read_png(out + "/00001.png");
  CHECK(second.image.width == 32);
  CHECK(second.image.height == 32);
  REQUIRE(second.texts.size() == 1);
  CHECK(second.texts[0].keyword == "parameters");
  CHECK(second.texts[0].text ==
        "a red circle\nNegative prompt: blue\nSteps: 5, Sampler: Euler, CFG scale: 3.5, Seed: 12, Size: 32x32, Model: "
        "model, "
        "RNG: CPU, Version: lpo " LPO_VERSION_STRING);
  const auto grid = lpo::read_png(out + "/grid.png").image;
  CHECK(grid.width == 66);
  CHECK(grid.height == 32);
  const std::string metadata = directory.read("out/metadata.jsonl");
  const auto line = lpo::parse_json<lpo::SortedJson>(metadata.substr(0, metadata.find('\n')), "test", "metadata");
  CHECK(line["file_name"] == "00000.png");
  CHECK(line["prompt"] == "a red circle");
  CHECK(line["seed"] == 11);
  CHECK(line["scheduler"] == "euler");

  // A picture depends on its seed alone: the second of two, drawn by itself, and in one batch with the first.
  const std::string alone = directory.file("alone"), batch = directory.file("batch");
  const std::vector<std::string> settings = {
      "--prompt",         "a red circle", "--negative_prompt", "blue", "--num-inference-steps", "5",
      "--guidance_scale", "3.5",          "--scheduler",       "euler"};
  auto arguments = settings;
  arguments.insert(arguments.end(), {"--seed", "12", "--output_dir", alone});
  REQUIRE(run_txt2img(arguments).status == 0);
  CHECK(lpo::read_png(alone + "/00000.png").image == second.image);
  CHECK_FALSE(lpo::file_exists(alone + "/grid.png"));
  arguments = settings;
  arguments.insert(arguments.end(),
                   {"--seed", "11", "--num_images_per_prompt", "2", "--batch_size", "2", "--output_dir", batch});
  REQUIRE(run_txt2img(arguments).status == 0);
  const auto batched = lpo::read_png(batch + "/00001.png").image;
  int worst = 0;
  for (std::size_t i = 0; i < batched.pixels.size(); ++i)
    worst = std::max(worst, std::abs(int{batched.pixels[i]} - int{second.image.pixels[i]}));
  CHECK(worst <= 1);

  // A second run numbers on.
  arguments = settings;
  arguments.insert(arguments.end(), {"--seed", "13", "--output_dir", alone, "--rng", "philox"});
  REQUIRE(run_txt2img(arguments).status == 0);
  CHECK(lpo::file_exists(alone + "/00001.png"));
  CHECK_FALSE(lpo::read_png(alone + "/00001.png").image == second.image);
}

TEST_CASE("txt2img's pictures replace none that are there; a grid is of the first hundred") {
  const TemporaryDirectory directory;
  directory.write("00001.png", "an earlier picture");
  directory.write("00003.png", "another");
  txt2img::Job job;
  job.model = examples::ModelSource(tiny_model);
  job.prompts = {"a red circle"};
  txt2img::PictureWriter writer(job, directory.path());
  CHECK(writer.write_grid().empty());
  CHECK(writer.write(lpo::RgbImage(2, 1), "a red circle", 1).ends_with("/00000.png"));
  CHECK(writer.write(lpo::RgbImage(2, 1), "a red circle", 2).ends_with("/00002.png"));
  CHECK(writer.write(lpo::RgbImage(2, 1), "a red circle", 3).ends_with("/00004.png"));
  CHECK(directory.read("00001.png") == "an earlier picture");
  CHECK(directory.read("00003.png") == "another");
  for (std::uint64_t seed = 4; seed <= 101; ++seed) writer.write(lpo::RgbImage(2, 1), "a red circle", seed);
  CHECK(lpo::file_exists(directory.file("00102.png")));
  const auto grid = lpo::read_png(writer.write_grid()).image;  // 10 x 10, 2 pixels between them
  CHECK(grid.width == 10 * 2 + 9 * 2);
  CHECK(grid.height == 10 * 1 + 9 * 2);
}

TEST_CASE("txt2img reads prompts and settings from files, and the command line wins") {
  const TemporaryDirectory directory;
  const std::string prompts = directory.write("prompts.json", R"([{"caption": "a blue square"}, "a red circle"])");
  const std::string config =
      directory.write("config.toml", "num_inference_steps = 2\nseed = 5\nprompt_file = \"" + prompts + "\"\n");
  const std::string out = directory.file("out");
  const auto run = run_txt2img({"--config", config, "--seed", "6", "--output_dir", out});
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  const std::string text = lpo::read_png(out + "/00001.png").texts.at(0).text;
  CHECK(has_part(text, "a red circle\nSteps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 6"));

  const auto unknown = run_txt2img({"--config", directory.write("bad.toml", "guidance = 3\n"), "--prompt", "x"});
  CHECK(unknown.status != 0);
  CHECK(has_part(unknown.printed, "guidance"));
  const auto empty = run_txt2img({"--prompt_file", directory.write("empty.json", "[]")});
  CHECK(empty.status == 1);
  CHECK(has_part(empty.printed, "has no prompts"));
}

TEST_CASE("txt2img draws the same from a single file, given a tokenizer") {
  const TemporaryDirectory directory;
  const std::string file = directory.file("model.safetensors");
  const auto converted = run_program(LPO_PROGRAM_CONVERT, {tiny_model, file});
  CAPTURE(converted.printed);
  REQUIRE(converted.status == 0);
  const std::vector<std::string> settings = {
      "--prompt", "a red circle", "--num_inference_steps", "3", "--threads", "1", "--seed", "4"};
  const auto draw = [&](const std::string& from, const std::string& to, const std::vector<std::string>& more) {
    auto arguments = settings;
    arguments.insert(arguments.begin(), {"--pretrained_model_name_or_path", from, "--output_dir", directory.file(to)});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(LPO_PROGRAM_TXT2IMG, arguments);
  };
  REQUIRE(draw(tiny_model, "folder", {}).status == 0);
  const auto drawn = draw(file, "file", {"--tokenizer", tiny_model + "/tokenizer"});
  CAPTURE(drawn.printed);
  REQUIRE(drawn.status == 0);
  CHECK(directory.read("file/00000.png") == directory.read("folder/00000.png"));
  REQUIRE(draw(file, "json", {"--tokenizer", tiny_model + "/tokenizer/vocab.json"}).status == 0);
  CHECK(directory.read("json/00000.png") == directory.read("folder/00000.png"));

  const auto plan = draw(file, "plan", {"--dry-run"});
  CHECK(has_part(plan.printed, "(tiny world)"));
  CHECK(has_part(plan.printed, "2801700"));
  const auto without = draw(file, "without", {});
  CHECK(without.status == 1);
  CHECK(has_part(without.printed,
                 "model.safetensors: a single file has no tokenizer; give the folder or file of one as --tokenizer"));
  CHECK(has_part(draw(directory.file("none"), "none", {}).printed, "none: No such file or directory"));
}

TEST_CASE("txt2img draws with DDIM where the model's scheduler is one that lpo does not have, and says so once") {
  const TemporaryDirectory directory;
  const std::string model = directory.file("model"), config = model + "/scheduler/scheduler_config.json";
  std::filesystem::copy(tiny_model, model, std::filesystem::copy_options::recursive);
  const std::string text = lpo::read_text_file(config), name = "\"DDIMScheduler\"";
  REQUIRE(has_part(text, name));
  const auto draw = [&](const std::string& scheduler, const std::string& to) {
    std::string changed_text = text;
    changed_text.replace(text.find(name), name.size(), "\"" + scheduler + "\"");
    lpo::write_text_file(config, changed_text);
    return run_program(LPO_PROGRAM_TXT2IMG,
                       {"--pretrained_model_name_or_path", model, "--prompt", "a red circle", "--num_inference_steps", "3",
                        "--threads", "1", "--output_dir", directory.file(to)});
  };
  const auto own = draw("DDIMScheduler", "own"), other = draw("UniPCMultistepScheduler", "other"),
             flow = draw("FlowMatchEulerDiscreteScheduler", "flow");
  REQUIRE(own.status == 0);
  CHECK_FALSE(has_part(own.printed, "note:"));
  REQUIRE(other.status == 0);
  const std::string note =
      "note: " + config + ": lpo has no UniPCMultistepScheduler; DDIMScheduler takes its place, along the betas of the file\n";
  CHECK(has_part(other.printed, note));
  CHECK(other.printed.find("note:") == other.printed.rfind("note:"));
  CHECK(directory.read("other/00000.png") == directory.read("own/00000.png"));
  CHECK(flow.status == 1);
  CHECK(has_part(flow.printed, "error: [config] " + config + ": _class_name is FlowMatchEulerDiscreteScheduler"));
}

TEST_CASE("txt2img in 16-bit storage draws nearly the same picture") {
  const TemporaryDirectory directory;
  const auto draw = [&](const std::string& dtype) {
    const auto run = run_txt2img({"--prompt", "a red circle", "--num_inference_steps", "8", "--seed", "4", "--dtype", dtype,
                              "--output_dir", directory.file(dtype)});
    CAPTURE(run.printed);
    REQUIRE(run.status == 0);
    CHECK(has_part(directory.read(dtype + "/metadata.jsonl"), "\"dtype\":\"" + dtype + "\""));
    return lpo::read_png(directory.file(dtype) + "/00000.png").image;
  };
  const auto exact = draw("float32");
  const auto mean_difference = [&](const lpo::RgbImage& image) {
    double sum = 0;
    for (std::size_t i = 0; i < image.pixels.size(); ++i) sum += std::abs(int{image.pixels[i]} - int{exact.pixels[i]});
    return sum / static_cast<double>(image.pixels.size());
  };
  const double brain = mean_difference(draw("bfloat16")), half = mean_difference(draw("float16"));
  // Storing a UNet's activations in bfloat16 moves its prediction by up to 1e-2 (tests/model/storage_test.cpp),
  // guidance makes that several times as much, and values near 1 are rounded by up to 2^-9, half a level of 255: two
  // levels on average. Half has three bits more.
  CHECK(brain > 0.0);
  CHECK(brain < 2.0);
  CHECK(half < 2.0 / 8);
}

TEST_CASE("txt2img --dry-run shows the plan and writes nothing") {
  const TemporaryDirectory directory;
  const std::string out = directory.file("out");
  const auto run =
      run_txt2img({"--prompt", "a red circle", "--dry-run", "--output_dir", out, "--width", "48", "--guidance_scale", "1"});
  CAPTURE(run.printed);
  CHECK(run.status == 0);
  for (const char* part : {"(tiny world)", "48 x 32, latents 12 x 8 x 4", "DDIM, 50 steps, epsilon prediction",
                           "2801700", "11.2 MB", "while denoising (1 rows)"})
    CHECK_MESSAGE(has_part(run.printed, part), part);
  CHECK_FALSE(lpo::file_exists(out + "/metadata.jsonl"));
  const auto half = run_txt2img({"--prompt", "a red circle", "--dry-run", "--dtype", "float16"});
  CAPTURE(half.printed);
  CHECK(has_part(half.printed, "storage      float16\n"));
  const bool is_for_gpu = is_plan_for_gpu(run.printed);
  // 2 (3181243 weights + 147456 activations)
  CHECK(has_part(half.printed, is_for_gpu ? "memory       about 1.01 GB" : "memory       about 6.7 MB"));
  const auto packed = run_txt2img({"--prompt", "a red circle", "--dry-run", "--keep_packed", "true"});
  CAPTURE(packed.printed);
  CHECK(has_part(packed.printed, "  packed, at most ") == !is_for_gpu);
}

TEST_CASE("txt2img warns of what it leaves out and of what can draw nothing") {
  const TemporaryDirectory directory;
  const auto draw = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"--num_inference_steps", "1", "--output_dir", directory.file("out")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const auto run = run_txt2img(arguments);
    CHECK(run.status == 0);
    return run.printed;
  };
  const auto write_lora = [&](float value) {
    lpo::SafetensorsWriter writer;
    for (const char* module : {"to_q", "to_nowhere"}) {
      const std::string name = std::string("unet.mid_block.attentions.0.transformer_blocks.0.attn1.") + module;
      writer.add_owned(name + ".lora_A.weight", lpo::DType::F32, {1, 96}, std::vector<float>(96, value));
      writer.add_owned(name + ".lora_B.weight", lpo::DType::F32, {96, 1}, std::vector<float>(96, 0.1f));
    }
    writer.write(directory.file("lora.safetensors"));
  };
  write_lora(0.1f);
  const std::string plain = draw({"--prompt", "a red circle"});
  CHECK_FALSE(has_part(plain, "warning"));
  const std::string unmatched = draw({"--prompt", "a red circle", "--lora", directory.file("lora.safetensors")});
  CHECK_MESSAGE(has_part(unmatched, "txt2img: warning: 2 keys of " + directory.file("lora.safetensors") +
                                        " find no weight in the model: "),
                unmatched);
  CHECK(has_part(unmatched, "attn1.to_nowhere.lora_A.weight"));
  write_lora(std::numeric_limits<float>::quiet_NaN());
  CHECK(has_part(draw({"--prompt", "a red circle", "--lora", directory.file("lora.safetensors")}),
                 "attn1.to_q.weight\" with the LoRA holds NaN or an infinity"));

  std::string prompt = "a red circle";
  while (std::count(prompt.begin(), prompt.end(), ' ') < 90) prompt += " and a blue square";
  const std::string cut = draw({"--prompt", prompt + " under a green triangle"});
  CHECK(has_part(cut, "txt2img: warning: a prompt has "));
  CHECK_MESSAGE(has_part(cut, "under a green triangle\"\n"), cut);
}

TEST_CASE("programs tell their version") {
  for (const auto& [path, name] : {std::pair(LPO_PROGRAM_TXT2IMG, "txt2img"), std::pair(LPO_PROGRAM_CONVERT, "convert"),
                                   std::pair(LPO_PROGRAM_SCORE, "score"), std::pair(LPO_PROGRAM_TRAIN_LPO, "train_lpo"),
                                   std::pair(LPO_PROGRAM_TRAIN_DPO, "train_dpo"), std::pair(LPO_PROGRAM_TRAIN_LRM, "train_lrm"),
                                   std::pair(LPO_PROGRAM_TRAIN_SPM, "train_spm")}) {
    const auto run = run_program(path, {"--version"});
    CHECK(run.status == 0);
    CHECK(run.printed == std::string(name) + " of lpo " LPO_VERSION_STRING "\n");
  }
}

TEST_CASE("txt2img says what is wrong") {
  const auto option = run_txt2img({"--prompt", "x", "--num_inference_step", "3"});
  CHECK(option.status != 0);
  CHECK(has_part(option.printed, "--num_inference_step"));
  const auto nothing = run_txt2img({});
  CHECK(nothing.status == 1);
  CHECK(
      has_part(nothing.printed, "txt2img: error: [txt2img] there is nothing to draw; give --prompt or --prompt_file"));
  const auto size = run_txt2img({"--prompt", "x", "--height", "40"});
  CHECK(has_part(size.printed, "[txt2img] height is 40; this model draws multiples of 16"));
  const auto sampler = run_txt2img({"--prompt", "x", "--scheduler", "heun"});
  CHECK(has_part(sampler.printed, "sampler \"heun\" is not supported; use one of ddim"));

  const auto says = [](const std::vector<std::string>& arguments, const std::string& text) {
    const auto run = run_txt2img(arguments);
    CAPTURE(run.printed);
    CHECK(run.status != 0);
    CHECK_MESSAGE(has_part(run.printed, text), text);
  };
  says({"--num_images_per_prompt", "0"}, "--num_images_per_prompt: 0 is not a number above 0\n");
  says({"--threads", "x"}, "--threads: x is not a number of at least 0\n");
  says({"--seed", "-1"}, "--seed: -1 is not a whole number from 0 to 18446744073709551615\n");
  says({"--guidance_scale", "-3"}, "--guidance_scale: -3 is not a number of at least 0\n");
  says({"--prompt", "x", "--scheduler", "dpm++_2m", "--num_inference_steps", "1000"}, "1000 steps asked of DPM++ over 1000");
  {
    const TemporaryDirectory files;
    const std::string settings = files.write("settings.toml", "num_inference_stepz = 3\n");
    says({"--config", settings}, "--config " + settings +
                                     ": line 1: there is no option num_inference_stepz (did you mean \"num_inference_steps\"?)\n");
  }

  // A model that is none of the families: every difference from the nearest.
  const TemporaryDirectory directory;
  const auto copy = [&](const std::string& part, const std::string& from, const std::string& to) {
    lpo::make_directories(directory.file(part));
    std::string text = lpo::read_text_file(tiny_model + "/" + part + "/config.json");
    if (!from.empty()) text.replace(text.find(from), from.size(), to);
    directory.write(part + "/config.json", text);
  };
  copy("unet", "\"cross_attention_dim\": 64", "\"cross_attention_dim\": 80");
  copy("vae", "", "");
  copy("text_encoder", "", "");
  const auto other =
      run_program(LPO_PROGRAM_TXT2IMG, {"--pretrained_model_name_or_path", directory.path(), "--prompt", "x"});
  CHECK(other.status == 1);
  CHECK(has_part(other.printed,
                 "nearest is tiny world, from which it differs in: unet/config.json: cross_attention_dim is 80 in the "
                 "file, 64 in the model\n"));
}
#endif
