// SPDX-License-Identifier: MIT
// train_dpo on forty pictures of the tiny world: what it writes, train_lrm's cache, interruptions, presets, the plan,
// what is refused.
#if defined(LPO_PROGRAM_TRAIN_DPO) && defined(LPO_PROGRAM_TXT2IMG)
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include <lpo/io/folder_lock.hpp>
#include <lpo/io/lora_file.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/training_checkpoint.hpp>

#include "preference_pictures.hpp"
#include "program.hpp"
#include "training_runs.hpp"

namespace {

/// Arguments of a run of six steps of four pairs.
struct DpoSetting : PreferencePictures {
  std::vector<std::string> arguments(const std::string& data, const std::string& out,
                                     const std::vector<std::string>& more = {}) const {
    const auto all = words(
        "--threads 1 --max_train_steps 6 --train_batch_size 2 --gradient_accumulation_steps 2 --beta_dpo 200 --rank 2 "
        "--learning_rate 5e-3 --lr_scheduler constant --guidance_scale 2 --num_inference_steps 4 --checkpointing_steps "
        "2",
        {"--pretrained_model_name_or_path", tiny_model, "--train_data_dir", data, "--output_dir", directory.file(out)});
    return changed(all, more);
  }
  ProgramResult train(const std::string& data, const std::string& out,
                      const std::vector<std::string>& more = {}) const {
    return run_program(LPO_PROGRAM_TRAIN_DPO, arguments(data, out, more));
  }
  std::string lora(const std::string& out) const { return directory.read(out + "/pytorch_lora_weights.safetensors"); }
  lpo::RgbImage draw(const std::string& from, const std::vector<std::string>& more = {}) const {
    return draw_circle(directory, from, more);
  }
};

const std::vector<std::string> validated = {
    "--validation_prompt", "a red circle", "--num_validation_images", "1", "--validation_steps", "3"};

}  // namespace

TEST_CASE("train_dpo writes a LoRA with which txt2img draws what validation drew, and everything about the run") {
  const DpoSetting setting;
  const auto run = setting.train(setting.pictures, "out", validated);
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  const std::string out = setting.directory.file("out"), lora = out + "/pytorch_lora_weights.safetensors";
  CHECK(has_part(run.printed, "kept 19 of 19 win-lose pairs and 1 of 1 ties (no filter)"));
  CHECK(has_part(run.printed, lora + "\n" + out + "/report.html\n"));
  const auto lines = lpo::read_metrics(out + "/metrics.jsonl");
  REQUIRE(lines.size() == 6);
  CHECK(lines[0]["train_loss"].get<double>() == doctest::Approx(0.693147).epsilon(1e-5));
  CHECK(lines[0]["implicit_acc"].get<double>() == 0);
  CHECK(lines[5]["implicit_acc"].get<double>() > 0);
  CHECK(lines[5]["epoch"].get<double>() == doctest::Approx(24.0 / 19));
  CHECK(lines[5]["global_step"].get<double>() == 6);
  for (const char* metric : {"train_margin", "grad_norm", "lr", "skipped_steps"}) CHECK(lines[5].contains(metric));
  CHECK(lpo::CheckpointFolder(out, 0).steps() == std::vector<lpo::index_t>{4, 6});
  CHECK(lpo::read_text_file(out + "/latest/pytorch_lora_weights.safetensors") == lpo::read_text_file(lora));
  CHECK(lpo::LoraFile(lora).rank() == 2);

  const auto before = lpo::read_png(out + "/validation/step-000000/0-0.png"),
             after = lpo::read_png(out + "/validation/step-000006/0-0.png");
  CHECK(lpo::file_exists(out + "/validation/step-000003/0-0.png"));
  CHECK(before.image == setting.draw(tiny_model));
  CHECK(largest_difference(before.image, after.image) > 8);
  CHECK(largest_difference(after.image, setting.draw(tiny_model, {"--lora", lora})) <= 1);
  CHECK(has_part(after.texts.at(0).text, "Model: model, Diffusion-DPO step: 6"));

  const std::string page = setting.directory.read("out/report.html");
  for (const char* part : {"Diffusion-DPO finished", "6 of 6 steps of 4 pairs", "First pictures (step-000000)",
                           "Last pictures (step-000006)", "beta_dpo", "data:image/png;base64,"})
    CHECK_MESSAGE(has_part(page, part), part);
  int events = 0;
  for (const auto& entry : std::filesystem::directory_iterator(out))
    events += entry.path().filename().string().starts_with("events.out.tfevents.") ? 1 : 0;
  CHECK(events == 1);

  // The settings as they were make the same run again; shards and the cache are the same pairs.
  const auto again = run_program(LPO_PROGRAM_TRAIN_DPO,
                                 {"--config", out + "/config.toml", "--output_dir", setting.directory.file("again")});
  CAPTURE(again.printed);
  REQUIRE(again.status == 0);
  REQUIRE(setting.train(setting.shards, "shards").status == 0);
  REQUIRE(setting.train(out + "/cache", "cached").status == 0);
  for (const char* other : {"again", "shards", "cached"}) {
    CAPTURE(other);
    CHECK(setting.lora(other) == setting.lora("out"));
    CHECK(setting.directory.read(std::string(other) + "/metrics.jsonl") == setting.directory.read("out/metrics.jsonl"));
  }
}

#ifdef LPO_PROGRAM_TRAIN_LRM
TEST_CASE("pictures that train_lrm encoded are not encoded again") {
  const DpoSetting setting;
  const auto encoded = run_program(LPO_PROGRAM_TRAIN_LRM,
                                   {"--pretrained_model_name_or_path", tiny_model, "--train_data_dir", setting.pictures,
                                    "--output_dir", setting.directory.file("lrm"), "--encode_only", "--threads", "1"});
  REQUIRE(encoded.status == 0);
  REQUIRE(setting.train(setting.pictures, "own").status == 0);
  const auto shared =
      setting.train(setting.pictures, "shared", {"--cache_dir", setting.directory.file("lrm/cache/train")});
  CAPTURE(shared.printed);
  REQUIRE(shared.status == 0);
  CHECK(has_part(shared.printed, "40 pictures, 0 encoded now"));
  // Another program may round otherwise: gradients, not bits.
  const auto first_norm = [&](const char* out) {
    return lpo::read_metric(setting.directory.file(std::string(out) + "/metrics.jsonl"), "grad_norm").value.at(0);
  };
  CHECK(first_norm("shared") == doctest::Approx(first_norm("own")).epsilon(1e-2));
}
#endif

TEST_CASE("killed or told to stop, and resumed, train_dpo ends with the same bits") {
  const DpoSetting setting;
  auto longer = validated;
  longer.insert(longer.end(), {"--max_train_steps", "20", "--checkpointing_steps", "3"});
  REQUIRE(setting.train(setting.pictures, "whole", longer).status == 0);
  auto resume = longer;
  resume.push_back("--resume");
  for (const int signal : {SIGKILL, SIGTERM, SIGINT}) {
    CAPTURE(signal);
    const std::string out = "cut-" + std::to_string(signal), log = setting.directory.file(out + ".log");
    RunningProgram program(LPO_PROGRAM_TRAIN_DPO, setting.arguments(setting.pictures, out, longer), log);
    const std::string metrics = setting.directory.file(out + "/metrics.jsonl");
    REQUIRE(program.runs_until([&] { return lpo::file_exists(metrics) && lpo::read_metrics(metrics).size() >= 4; }));
    program.send(signal);
    CHECK(program.wait() == (signal == SIGKILL ? 128 + SIGKILL : 130));
    if (signal != SIGKILL) {
      CHECK(has_part(setting.directory.read(out + ".log"), "train_dpo: stopped: [DpoTrainer] cancelled after step "));
      CHECK(has_part(setting.directory.read(out + "/report.html"), "Diffusion-DPO stopped"));
    }
    CHECK(has_part(setting.train(setting.pictures, out, longer).printed, "has checkpoints of an earlier run"));
    const auto resumed = setting.train(setting.pictures, out, resume);
    CAPTURE(resumed.printed);
    REQUIRE(resumed.status == 0);
    CHECK(has_part(resumed.printed, "40 pictures, 0 encoded now"));
    CHECK(setting.lora(out) == setting.lora("whole"));
    CHECK(setting.directory.read(out + "/metrics.jsonl") == setting.directory.read("whole/metrics.jsonl"));
  }
}

TEST_CASE("train_dpo trains some projections, or the whole UNet, with averages and less memory") {
  const DpoSetting setting;
  const auto few =
      setting.train(setting.pictures, "few",
                    {"--lora_targets", "attn2.to_k,attn2.to_v", "--lora_alpha", "4", "--lr_scheduler", "cosine",
                     "--lr_warmup_steps", "2", "--max_grad_norm", "0", "--proportion_empty_prompts", "1",
                     "--score_file", setting.scores, "--mpcf_strategy", "3"});
  CAPTURE(few.printed);
  REQUIRE(few.status == 0);
  CHECK(has_part(few.printed, "kept 15 of 19 win-lose pairs and 1 of 1 ties (MPCF strategy 3)"));
  const lpo::LoraFile file(setting.directory.file("few/pytorch_lora_weights.safetensors"));
  CHECK(file.adapters().size() == 2 * (2 * 3 + 1 + 3));
  CHECK(file.adapters().front()->scale() == 2.0);

  auto more = validated;
  more.insert(more.end(),
              {"--full_finetuning", "--ema_decay", "0.5", "--gradient_checkpointing", "--learning_rate", "1e-4"});
  const auto full = setting.train(setting.pictures, "full", more);
  CAPTURE(full.printed);
  REQUIRE(full.status == 0);
  CHECK(has_part(full.printed, setting.directory.file("full/unet") + "\n"));
  // The result in a pipeline's folder draws the last validation picture, which averages drew.
  const std::string pipeline = setting.directory.file("pipeline");
  std::filesystem::copy(tiny_model, pipeline, std::filesystem::copy_options::recursive);
  std::filesystem::copy(setting.directory.file("full/unet"), pipeline + "/unet",
                        std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  const auto picture = setting.draw(pipeline);
  CHECK(picture == lpo::read_png(setting.directory.file("full/validation/step-000006/0-0.png")).image);
  CHECK_FALSE(picture == setting.draw(tiny_model));
}

TEST_CASE("train_dpo stops with the last good weights where gradients are not finite") {
  const DpoSetting setting;
  // Both are floats (the second is 2^127), their product is none.
  const auto run = setting.train(setting.pictures, "out", {"--beta_dpo", "1e37", "--loss_scale", "1.7014118346046923e38",
                                                           "--max_skipped_steps", "2"});
  CAPTURE(run.printed);
  CHECK(run.status == 1);
  CHECK(has_part(run.printed, "lower learning_rate or beta_dpo"));
  CHECK(has_part(setting.directory.read("out/not_finite.json"), "\"steps_in_a_row\": 2"));
  CHECK(has_part(setting.directory.read("out/report.html"), "Diffusion-DPO stopped"));
  CHECK_FALSE(lpo::file_exists(setting.directory.file("out/pytorch_lora_weights.safetensors")));
}

TEST_CASE("the presets are settings of train_dpo, and --dry-run shows the plan and writes nothing") {
  const DpoSetting setting;
  for (const char* name : {"sd15", "sd21", "sdxl"}) {
    const std::string preset = std::string(LPO_TEST_SOURCE_DIR) + "/examples/train_dpo/configs/dpo_" + name + ".toml";
    const auto plan =
        run_program(LPO_PROGRAM_TRAIN_DPO, {"--config", preset, "--pretrained_model_name_or_path", tiny_model,
                                            "--train_data_dir", setting.pictures, "--dry-run", "--resolution", "32",
                                            "--output_dir", setting.directory.file("out")});
    CAPTURE(plan.printed);
    REQUIRE(plan.status == 0);
    for (const char* part :
         {"(tiny world)", "pairs.jsonl, 20 pairs of pictures", "32 x 32, latents 8 x 8 x 4",
          "2000 of 2048 pairs, 1 at once", "beta 5000, learning rate 2.048e-05 (constant_with_warmup, ",
          "  reference               2801700      11.2 MB", "TFLOP a step", "memory       about ",
          "encoding     at least "})
      CHECK_MESSAGE(has_part(plan.printed, part), part);
    // Two copies of 2801700 weights, with gradients and moments of one.
    CHECK(memory_for_model(plan.printed) > 5 * 11.2e6);
    CHECK(memory_for_model(plan.printed) < 2e8);
  }
  CHECK_FALSE(lpo::directory_exists(setting.directory.file("out")));
}

TEST_CASE("train_dpo tells of options without effect and of steps that take more pairs than there are") {
  const DpoSetting setting;
  const std::vector<std::string> short_run = {"--max_train_steps", "1"};
  const auto plain = setting.train(setting.pictures, "plain", short_run);
  REQUIRE(plain.status == 0);
  CHECK_FALSE(has_part(plain.printed, "note:"));
  const auto told = setting.train(setting.pictures, "told", {"--max_train_steps", "1", "--lr_warmup_steps", "5",
                                                             "--gradient_accumulation_steps", "10"});
  CAPTURE(told.printed);
  REQUIRE(told.status == 0);
  CHECK(has_part(told.printed, "note: --lr_warmup_steps 5 has no effect with --lr_scheduler constant; "));
  CHECK(has_part(told.printed, "note: an optimizer step takes 20 pairs, and there are 19: they come several times in it; "));
}

TEST_CASE("SIGTERM within a long step drops it, and train_dpo stops soon") {
  const DpoSetting setting;
  {  // a step of a hundred thousand pairs takes minutes
    RunningProgram program(LPO_PROGRAM_TRAIN_DPO,
                           setting.arguments(setting.pictures, "long", {"--gradient_accumulation_steps", "50000"}),
                           setting.directory.file("log"));
    REQUIRE(program.runs_until([&] { return has_part(setting.directory.read("log"), " 0/6 "); }));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const auto begin = std::chrono::steady_clock::now();
    program.send(SIGTERM);
    CHECK(program.wait() == 130);
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
  }
  CAPTURE(setting.directory.read("log"));
  CHECK(has_part(setting.directory.read("log"),
                 "train_dpo: stopped: [DpoTrainer] cancelled after step 0 of 6; the step that was begun is dropped"));
  CHECK(lpo::CheckpointFolder(setting.directory.file("long"), 0).steps() == std::vector<lpo::index_t>{0});
  CHECK(has_part(setting.directory.read("long/report.html"), "Diffusion-DPO stopped"));
}

TEST_CASE("one run at a time writes into a folder") {
  const DpoSetting setting;
  lpo::make_directories(setting.directory.file("out"));
  const lpo::FolderLock lock(setting.directory.file("out"));
  for (const std::vector<std::string>& more : {std::vector<std::string>{}, {"--resume"}, {"--encode_only"}}) {
    const auto run = setting.train(setting.pictures, "out", more);
    CAPTURE(run.printed);
    CHECK(run.status == 1);
    CHECK(has_part(run.printed, "error: [lock] " + setting.directory.file("out") +
                                    ": another run writes into this folder (process " + std::to_string(::getpid())));
  }
  CHECK_FALSE(lpo::file_exists(setting.directory.file("out/config.toml")));
  CHECK(setting.train(setting.pictures, "out", {"--dry-run"}).status == 0);
}

TEST_CASE("train_dpo says what is wrong") {
  const DpoSetting setting;
  const auto says = [&](const std::vector<std::string>& more, const char* text) {
    const auto run = setting.train(setting.pictures, "wrong", more);
    CAPTURE(run.printed);
    CHECK(run.status != 0);
    CHECK_MESSAGE(has_part(run.printed, text), text);
  };
  says({"--learning_rat", "1"}, "--learning_rat");
  const std::string bad = setting.directory.write("bad.toml", "seed = 1\nbeta_dp = 1\n");
  says({"--config", bad}, ("--config " + bad + ": line 2: there is no option beta_dp (did you mean \"beta_dpo\"?)\n").c_str());
  const std::string other = setting.directory.write("other.toml", "lrm = \"x\"\nseed = 1\nprompt_file = 1\nobjective = 2\neta = 1\n");
  says({"--config", other}, ("--config " + other + ": 4 of its keys are no options here (lrm, prompt_file, objective, ...): "
                             "these are the settings of another program\n").c_str());
  says({"--train_data_dir", setting.directory.file("none")}, "none: there is no such file or folder");
  says({"--lora_targets", "to_z"}, "[LoRA] no projection is named as --lora_targets to_z says");
  says({"--lora_targets", "to_q,foo,bar"}, "[LoRA] no projection is named as --lora_targets bar,foo says");
  says({"--loss_scale", "3"}, "--loss_scale: 3 is not a power of two, such as 1024");
  says({"--guidance_scale", "-3"}, "--guidance_scale: -3 is not a number of at least 0");
  says({"--num_inference_steps", "0"}, "--num_inference_steps");
  says({"--max_train_steps", "0"}, "--max_train_steps: 0 is not a number above 0\n");
  for (const char* seed : {"-1", "18446744073709551616", "one"})
    says({"--seed", seed}, (std::string("--seed: ") + seed + " is not a whole number from 0 to 18446744073709551615\n").c_str());
  says({"--resolution", "40"}, "[train_dpo] --resolution is 40; this model draws multiples of 16");
  says({"--mpcf_strategy", "3"}, "--mpcf_strategy needs the scores of the pairs; give --score_file");
  says({"--proportion_empty_prompts", "1.5"}, "--proportion_empty_prompts");
  says({"--dtype", "float64"}, "dtype is float64; this program is compiled for ");
  says({"--lr_scheduler", "log"}, "--lr_scheduler");
  says({"--train_data_dir",
        setting.directory.write("ties.jsonl",
                                "{\"caption\": \"a red circle\", \"image_0\": \"pictures/good0.png\", "
                                "\"image_1\": \"pictures/bad0.png\", \"label_0\": 0.5, \"label_1\": 0.5}\n")},
       "[DpoTrainer] none of 1 pairs has a preferred image");

  REQUIRE(setting.train(setting.pictures, "used").status == 0);
  CHECK(has_part(setting.train(setting.pictures, "used").printed,
                 "used has checkpoints of an earlier run; go on with it with --resume, or name another folder"));
  const std::string config = setting.directory.read("used/config.toml");
  const std::string report = setting.directory.read("used/report.html");
  const auto changed = setting.train(setting.pictures, "used", {"--resume", "--beta_dpo", "7"});
  CHECK(changed.status == 1);
  CHECK(has_part(changed.printed, "beta_dpo: saved 200"));
  const auto fewer =
      setting.train(setting.pictures, "used",
                    {"--resume", "--score_file", setting.scores, "--cache_dir", setting.directory.file("filtered")});
  CHECK(has_part(fewer.printed, "pairs: saved 19, now 10"));
  // What was refused left the run as it was.
  CHECK((setting.directory.read("used/config.toml") == config));  // a failure would print both
  CHECK((setting.directory.read("used/report.html") == report));
}
#endif
