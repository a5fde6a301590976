// SPDX-License-Identifier: MIT
// train_lpo on the tiny world: what it writes, resuming after kills and signals, settings files, the plan, wrong
// inputs.
#if defined(LPO_PROGRAM_TRAIN_LPO) && defined(LPO_PROGRAM_TXT2IMG)
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include <lpo/base/philox.hpp>
#include <lpo/io/json.hpp>
#include <lpo/io/lora_file.hpp>
#include <lpo/io/png.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/training_checkpoint.hpp>

#include "../io/temporary_directory.hpp"
#include "program.hpp"
#include "tiny_reward_model.hpp"
#include "training_runs.hpp"

namespace {

/// A reward model, prompts, and arguments of a run of four iterations in two epochs.
struct Setting {
  TemporaryDirectory directory;
  std::string lrm = directory.file("lrm");
  std::string prompts = write_prompts(directory);

  Setting() { write_reward_model(lrm); }

  std::vector<std::string> arguments(const std::string& out, const std::vector<std::string>& more = {}) const {
    return changed(words("--num_train_epochs 2 --checkpoints_total_limit 2",
                         changed(lpo_arguments(prompts, directory.file(out)), {"--lrm", lrm})),
                   more);
  }
  ProgramResult train(const std::string& out, const std::vector<std::string>& more = {}) const {
    return run_program(LPO_PROGRAM_TRAIN_LPO, arguments(out, more));
  }
  lpo::RgbImage draw(const std::string& from, const std::vector<std::string>& more = {}) const {
    return draw_circle(directory, from, more);
  }
};

const std::vector<std::string> validated = {"--validation_prompt", "a red circle", "--num_validation_images", "1"};

}  // namespace

TEST_CASE("train_lpo writes a LoRA with which txt2img draws what validation drew, and everything about the run") {
  const Setting setting;
  lpo::make_directories(setting.directory.file("out/validation/epoch-000"));
  lpo::write_png(setting.directory.file("out/validation/epoch-000/0-0.png"), lpo::RgbImage(32, 32));  // of another run
  const auto run = setting.train("out", validated);
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  const std::string out = setting.directory.file("out"), lora = out + "/pytorch_lora_weights.safetensors";
  CHECK(has_part(run.printed, lora + "\n" + out + "/report.html\n"));

  const auto lines = lpo::read_metrics(out + "/metrics.jsonl");
  REQUIRE(lines.size() == 4);
  CHECK(lines[0]["train_ratio_win"].get<double>() > 0.89);
  CHECK(lines[3]["epoch"].get<double>() == 2.0);
  CHECK(lines[3]["kept"].get<double>() > 0);
  CHECK(lpo::CheckpointFolder(out, 0).steps() == std::vector<lpo::index_t>{3, 4});
  CHECK(lpo::read_text_file(out + "/latest/pytorch_lora_weights.safetensors") == lpo::read_text_file(lora));
  const lpo::LoraFile file(lora);
  CHECK(file.adapters().size() == 8 * (2 * 3 + 1 + 3));  // each transformer: two attentions of four projections
  CHECK(file.rank() == 2);

  // Before training, the base model; afterwards, what the LoRA makes of it.
  const auto before = lpo::read_png(out + "/validation/epoch-000/0-0.png"),
             after = lpo::read_png(out + "/validation/epoch-002/0-0.png");
  CHECK(before.image == setting.draw(tiny_model));
  CHECK(largest_difference(before.image, after.image) > 8);
  CHECK(largest_difference(after.image, setting.draw(tiny_model, {"--lora", lora})) <= 1);
  CHECK(has_part(after.texts.at(0).text, "a red circle\nSteps: 4, Sampler: DDIM, CFG scale: 2, Seed: 42, Size: 32x32"));
  CHECK(lpo::file_exists(out + "/validation/epoch-001/0-0.png"));

  const std::string page = setting.directory.read("out/report.html");
  for (const char* part :
       {"LPO finished", "4 of 4 iterations over 4 prompts", "Kept share by timestep", "First pictures (epoch-000)",
        "Last pictures (epoch-002)", "learning_rate", "data:image/png;base64,"})
    CHECK_MESSAGE(has_part(page, part), part);
  int events = 0;
  for (const auto& entry : std::filesystem::directory_iterator(out))
    events += entry.path().filename().string().starts_with("events.out.tfevents.") ? 1 : 0;
  CHECK(events == 1);

  // The settings as they were make the same run again; the command line goes before them. Packed weights change no bit.
  const auto again = run_program(LPO_PROGRAM_TRAIN_LPO,
                                 {"--config", out + "/config.toml", "--output_dir", setting.directory.file("again"), "--keep_packed", "true"});
  CAPTURE(again.printed);
  REQUIRE(again.status == 0);
  CHECK(setting.directory.read("again/pytorch_lora_weights.safetensors") == lpo::read_text_file(lora));
  CHECK(setting.directory.read("again/metrics.jsonl") == setting.directory.read("out/metrics.jsonl"));
}

TEST_CASE("killed at any moment and resumed, train_lpo ends with the same bits and never leaves a broken checkpoint") {
  const Setting setting;
  REQUIRE(setting.train("whole", validated).status == 0);
  const std::string cut = setting.directory.file("cut");
  auto more = validated;
  more.push_back("--resume");
  const auto arguments = setting.arguments("cut", more);
  lpo::RandomStream random(7, 1, 0);
  int kills = 0;
  bool done = false;
  // Runs last longer and longer, until one reaches its end.
  for (int attempt = 0; attempt < 30 && !done; ++attempt) {
    RunningProgram program(LPO_PROGRAM_TRAIN_LPO, arguments, setting.directory.file("log"));
    const auto begin = std::chrono::steady_clock::now();
    const auto limit = std::chrono::milliseconds(10 + 40 * attempt + static_cast<int>(random.uniform_int(100)));
    if (!program.runs_until([&] { return std::chrono::steady_clock::now() - begin > limit; })) {
      CAPTURE(setting.directory.read("log"));
      REQUIRE(program.wait() == 0);
      done = true;
      continue;
    }
    program.send(SIGKILL);
    const int status = program.wait();
    done = status == 0;  // it had just ended by itself
    if (done) continue;
    CHECK(status == 128 + SIGKILL);
    ++kills;
    for (const lpo::index_t step : lpo::CheckpointFolder(cut, 0).steps()) {
      const std::string folder = cut + "/checkpoint-" + std::to_string(step);
      CHECK_NOTHROW(lpo::SafetensorsFile(folder + "/state.safetensors").read_vector<float>("weights"));
      CHECK_NOTHROW(lpo::LoraFile(folder + "/pytorch_lora_weights.safetensors"));
    }
  }
  if (!done) REQUIRE(run_program(LPO_PROGRAM_TRAIN_LPO, arguments).status == 0);
  MESSAGE(kills, " kills");
  CHECK(kills > 3);
  for (const char* name :
       {"pytorch_lora_weights.safetensors", "metrics.jsonl", "latest/state.safetensors", "latest/trainer_state.json",
        "validation/epoch-000/0-0.png", "validation/epoch-001/0-0.png", "validation/epoch-002/0-0.png"})
    CHECK_MESSAGE(
        setting.directory.read(std::string("cut/") + name) == setting.directory.read(std::string("whole/") + name),
        name);
}

TEST_CASE("train_lpo saves and stops when it is asked to") {
  const Setting setting;
  const std::vector<std::string> longer = {"--max_train_iterations", "12", "--checkpointing_iterations", "100"};
  REQUIRE(setting.train("whole", longer).status == 0);
  for (const int signal : {SIGTERM, SIGINT}) {
    const std::string name = signal == SIGTERM ? "term" : "int", log = setting.directory.file(name + ".log");
    RunningProgram program(LPO_PROGRAM_TRAIN_LPO, setting.arguments(name, longer), log);
    const std::string metrics = setting.directory.file(name + "/metrics.jsonl");
    REQUIRE(program.runs_until([&] { return lpo::file_exists(metrics) && lpo::read_metrics(metrics).size() >= 2; }));
    program.send(signal);
    CHECK(program.wait() == 130);
    CHECK(
        has_part(setting.directory.read(name + ".log"), "train_lpo: stopped: [LpoTrainer] cancelled after iteration "));
    CHECK(has_part(setting.directory.read(name + "/report.html"), "LPO stopped"));
    CHECK(lpo::CheckpointFolder(setting.directory.file(name), 0).steps().size() == 1);
    auto resumed = longer;
    resumed.push_back("--resume");
    REQUIRE(setting.train(name, resumed).status == 0);
    CHECK(lpo::CheckpointFolder(setting.directory.file(name), 0).steps().back() == 12);
    CHECK(setting.directory.read(name + "/pytorch_lora_weights.safetensors") ==
          setting.directory.read("whole/pytorch_lora_weights.safetensors"));
  }
}

TEST_CASE("train_lpo trains some projections, or the whole UNet, with averages and less memory") {
  const Setting setting;
  const auto few = setting.train("few", {"--lora_targets",
                                         "attn2.to_k,attn2.to_v",
                                         "--max_train_iterations",
                                         "2",
                                         "--lora_alpha",
                                         "4",
                                         "--threshold_mode",
                                         "variance",
                                         "--threshold_quantile",
                                         "0.3",
                                         "--calibration_rollouts",
                                         "1",
                                         "--lrm_timestep",
                                         "arrival",
                                         "--divert_start_step",
                                         "1",
                                         "--lrm_max_rows",
                                         "3",
                                         "--lr_scheduler",
                                         "constant_with_warmup",
                                         "--lr_warmup_steps",
                                         "2",
                                         "--max_grad_norm",
                                         "1",
                                         "--gradient_accumulation_steps",
                                         "2",
                                         "--lrm_multi_scale_cfg",
                                         "true",
                                         "--lrm_head_dtype",
                                         "float16"});
  CAPTURE(few.printed);
  REQUIRE(few.status == 0);
  const lpo::LoraFile file(setting.directory.file("few/pytorch_lora_weights.safetensors"));
  CHECK(file.adapters().size() == 2 * (2 * 3 + 1 + 3));
  // A reader that went by the names' ends would put adapters on attn1 as well.
  CHECK(has_part(file.file().metadata().at("lora_adapter_metadata"),
                 "\"mid_block.attentions.0.transformer_blocks.0.attn2.to_k\""));
  CHECK(lpo::read_metrics(setting.directory.file("few/metrics.jsonl")).back()["kept_t_large"].get<double>() <= 2);
  for (const auto* adapter : file.adapters()) {
    CHECK(has_part(adapter->path, ".attn2.to_"));
    CHECK(adapter->scale() == 2.0);
  }

  auto more = validated;
  more.insert(more.end(),
              {"--full_finetuning", "--ema_decay", "0.5", "--gradient_checkpointing", "--learning_rate", "1e-4"});
  const auto full = setting.train("full", more);
  CAPTURE(full.printed);
  REQUIRE(full.status == 0);
  // The result in a pipeline's folder draws the last validation picture, which averages drew.
  const std::string pipeline = setting.directory.file("pipeline");
  std::filesystem::copy(tiny_model, pipeline, std::filesystem::copy_options::recursive);
  std::filesystem::copy(setting.directory.file("full/unet"), pipeline + "/unet",
                        std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  const auto picture = setting.draw(pipeline);
  CHECK(picture == lpo::read_png(setting.directory.file("full/validation/epoch-002/0-0.png")).image);
  CHECK_FALSE(picture == setting.draw(tiny_model));

  const auto averaged = setting.train("averaged", {"--ema_decay", "0.9", "--max_train_iterations", "2"});
  REQUIRE(averaged.status == 0);
  CHECK(setting.directory.read("averaged/latest/ema/pytorch_lora_weights.safetensors") ==
        setting.directory.read("averaged/pytorch_lora_weights.safetensors"));
  CHECK_FALSE(setting.directory.read("averaged/latest/pytorch_lora_weights.safetensors") ==
              setting.directory.read("averaged/pytorch_lora_weights.safetensors"));
}

TEST_CASE("train_lpo can be told what the original code does otherwise") {
  const Setting setting;
  const std::vector<std::string> official = {"--dedup_forward", "false", "--ref_precision", "official",
                                             "--stable_logsigmoid", "false", "--small_bucket_includes_t1", "false",
                                             "--lrm_timestep", "departure", "--num_inference_steps", "20",
                                             "--threshold_mode", "sigma", "--threshold_table", "official20",
                                             "--threshold_min", "0", "--threshold_max", "0",
                                             "--max_train_iterations", "1", "--lrm_guidance", "1"};
  const auto run = setting.train("official", official);
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  const auto line = lpo::read_metrics(setting.directory.file("official/metrics.jsonl")).front();
  const auto number = [&](const char* name) { return line[name].get<double>(); };
  CHECK(number("kept") == 40);  // of two prompts at each step, of which t = 1 is in no bucket
  CHECK(number("kept_t_very_large") + number("kept_t_large") + number("kept_t_middle") + number("kept_t_small") == 38);
  const auto state = setting.directory.read("official/latest/trainer_state.json");
  for (const char* part : {"\"dedup_forward\": false", "\"half_reference\": true", "\"lrm_timestep\": \"departure\""})
    CHECK_MESSAGE(has_part(state, part), part);
  const auto other = setting.train("official", {"--num_inference_steps", "20", "--lrm_guidance", "1", "--resume"});
  CHECK(other.status == 1);
  CHECK(has_part(other.printed, "half_reference: saved true, now nothing"));
}

TEST_CASE("train_lpo scores as the reward model was trained, and its settings say how") {
  const Setting setting;
  write_reward_model(setting.lrm, {.guidance = 1, .multi_scale = false});
  const auto run = setting.train("out", {"--max_train_iterations", "1"});
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  CHECK_FALSE(has_part(run.printed, "note:"));
  const std::string settings = setting.directory.read("out/config.toml");
  CHECK(has_part(settings, "\nlrm_guidance=1\n"));
  CHECK(has_part(settings, "\nlrm_multi_scale=false\n"));
  const auto told = setting.train("told", {"--max_train_iterations", "1", "--lrm_guidance", "7.5"});
  CHECK(told.status == 0);
  CHECK(has_part(told.printed, "is used otherwise than it was trained: --lrm_guidance 7.5 (trained with 1)"));
}

TEST_CASE("train_lpo warns when no pair was clear enough to train on") {
  const Setting setting;
  const auto run = setting.train("out", {"--threshold_const", "0.999", "--max_train_iterations", "1"});
  CAPTURE(run.printed);
  CHECK(run.status == 0);
  CHECK(has_part(run.printed, "warning: no pair was kept in any roll-out, so nothing was learned"));
  CHECK(has_part(run.printed, "--threshold_const 0.999"));
}

TEST_CASE("the presets are settings of train_lpo") {
  const Setting setting;
  for (const char* name : {"sd15", "sd21", "sdxl"}) {
    const std::string preset = std::string(LPO_TEST_SOURCE_DIR) + "/examples/train_lpo/configs/lpo_" + name + ".toml";
    const auto plan =
        run_program(LPO_PROGRAM_TRAIN_LPO, {"--config", preset, "--pretrained_model_name_or_path", tiny_model, "--lrm",
                                            setting.lrm, "--prompt_file", setting.prompts, "--dry-run", "--rank", "4"});
    CAPTURE(plan.printed);
    CHECK(plan.status == 0);
    CHECK(has_part(plan.printed, "4 prompts, 20 steps, 4 candidates, guidance 5"));
  }
}

TEST_CASE("train_lpo --dry-run shows the plan and writes nothing") {
  const Setting setting;
  const auto plan = setting.train("out", {"--dry-run"});
  CAPTURE(plan.printed);
  REQUIRE(plan.status == 0);
  for (const char* part :
       {"(tiny world)", "32 x 32, latents 8 x 8 x 4", "roll-out     2 prompts, 4 steps, 2 candidates, guidance 2",
        "iterations   4, 2 an epoch", "  unet                    2801700      11.2 MB", "TFLOP an iteration",
        "memory       about ", "GFLOP/s"})
    CHECK_MESSAGE(has_part(plan.printed, part), part);
  CHECK(memory_for_model(plan.printed) > 2 * 11.2e6);
  CHECK(memory_for_model(plan.printed) < 2e8);
  CHECK(has_part(plan.printed, "training (6 rows)"));
  CHECK_FALSE(has_part(plan.printed, "packed"));
  // A program for GPUs takes the option of another's settings file, and packs nothing.
  const bool packs = !is_plan_for_gpu(plan.printed);
  const auto packed = setting.train("out", {"--dry-run", "--keep_packed", "true"});
  CAPTURE(packed.printed);
  REQUIRE(packed.status == 0);
  CHECK(has_part(packed.printed, "frozen weights stay packed\n") == packs);
  CHECK(has_part(packed.printed, "  packed, at most ") == packs);
  CHECK(has_part(setting.train("out", {"--dry-run", "--dedup_forward", "false"}).printed, "training (12 rows)"));
  CHECK_FALSE(lpo::directory_exists(setting.directory.file("out")));
}

TEST_CASE("train_lpo says what is wrong") {
  const Setting setting;
  const auto says = [&](const std::vector<std::string>& more, const char* text) {
    const auto run = setting.train("out", more);
    CAPTURE(run.printed);
    CHECK(run.status != 0);
    CHECK_MESSAGE(has_part(run.printed, text), text);
  };
  says({"--learning_rat", "1"}, "--learning_rat");
  says({"--config", setting.directory.write("bad.toml", "learning_rat = 1\n")}, "learning_rat");
  says({"--prompt_file", setting.directory.file("none.json")}, "none.json: No such file or directory");
  says({"--prompt_file", setting.directory.write("o.json", "[1]")},
       "o.json: entry 0 is 1, expected a text or an object with a \"caption\"");
  says({"--lrm", setting.directory.file("none")}, "none/unet/config.json");
  says({"--lrm", tiny_model}, "model: no head; tried head.safetensors, state_dict.pt");
  says({"--lora_targets", "to_z"},
       "[LoRA] no projection is named as --lora_targets to_z says; a UNet's are to_q, to_k, to_v");
  says({"--rank", "500"}, "[LoRA] rank 500 must be 1 to ");
  says({"--resolution", "40"}, "[train_lpo] --resolution is 40; this model draws multiples of 16");
  says({"--eta", "0"}, "[train_lpo] --eta is 0; candidates differ by the noise");
  says({"--divert_start_step", "4"}, "[train_lpo] --divert_start_step 4: roll-outs end before step 4 (--num_inference_steps)");
  says({"--divert_start_step", "3", "--divert_end_step", "2"},
       "[train_lpo] --divert_start_step 3: roll-outs end before step 2 (--divert_end_step)");
  for (const char* option : {"--learning_rate", "--beta", "--guidance_scale", "--eta", "--threshold_const", "--lrm_guidance"})
    says({option, "nan"}, "nan is not a finite number");
  says({"--beta", "inf"}, "--beta: inf is not a finite number");
  says({"--lrm_multi_scale", "false"}, "[train_lpo] --lrm_multi_scale: ");
  says({"--threshold_mode", "sigma", "--threshold_min", "0.6", "--threshold_max", "0.5"},
       "minimum 0.6, maximum 0.5");
  says({"--threshold_mode", "sigma", "--threshold_table", "official20", "--num_inference_steps", "7"},
       "use ThresholdTable::closed_form");
  says({"--threshold_quantile", "0.5"}, "[train_lpo] --threshold_quantile finds thresholds that grow with the noise");
  says({"--dtype", "float64"}, "dtype is float64; this program is compiled for ");
  says({"--lr_scheduler", "cosine"}, "--lr_scheduler");
  says({"--ref_precision", "float16"}, "--ref_precision");
  says({"--objective", "grpo", "--dedup_forward", "false"}, "[train_lpo] --dedup_forward: --objective grpo trains groups");

  // A reward model of another architecture.
  const std::string other = setting.directory.file("other");
  std::filesystem::copy(setting.lrm, other, std::filesystem::copy_options::recursive);
  std::string config = lpo::read_text_file(other + "/unet/config.json");
  const std::string from = "\"cross_attention_dim\": 64";
  REQUIRE(config.find(from) != std::string::npos);
  lpo::write_text_file(other + "/unet/config.json",
                       config.replace(config.find(from), from.size(), "\"cross_attention_dim\": 80"));
  says({"--lrm", other},
       "a tiny world model needs a reward model of tiny world, whose autoencoder it shares; this one differs in: "
       "unet/config.json: cross_attention_dim is 80 in the file, 64 in the model");

  REQUIRE(setting.train("used").status == 0);
  const auto twice = setting.train("used");
  CHECK(twice.status == 1);
  CHECK(has_part(twice.printed,
                 "used has checkpoints of an earlier run; go on with it with --resume, or name another folder"));
  const std::string settings = setting.directory.read("used/config.toml");
  const std::string report = setting.directory.read("used/report.html");
  const auto weaker = setting.train("used", {"--resume", "--beta", "7"});
  CHECK(weaker.status == 1);
  CHECK(has_part(weaker.printed, "beta: saved 500"));
  CHECK(has_part(weaker.printed, "use the saved settings, or another output folder"));
  const auto others =
      setting.train("used", {"--resume", "--prompt_file", setting.directory.write("o.txt", "a red circle\n")});
  CHECK(has_part(others.printed, "prompts: saved \"4 prompts, "));
  const auto resumed_with = [&](const std::vector<std::string>& more, const char* difference) {
    const auto refused = setting.train("used", changed(more, {"--resume"}));
    CHECK(refused.status == 1);
    CHECK_MESSAGE(has_part(refused.printed, difference), refused.printed);
  };
  resumed_with({"--lora_alpha", "7"}, "lora_alpha: saved \"2.0\", now \"7.0\"");
  resumed_with({"--lora_targets", "to_k,to_v,to_q,to_out.0"}, "lora_targets: saved");
  resumed_with({"--lrm_guidance", "2"}, "lrm_guidance: saved \"7.5\", now \"2.0\"");
  resumed_with({"--prediction_type", "v_prediction"}, "prediction_type: saved");
  resumed_with({"--adam_beta1", "0.5"}, "adam_betas: saved [0.9,0.999], now [0.5,0.999]");
  // What was refused left the run as it was; a run that goes on has its settings.
  CHECK((setting.directory.read("used/config.toml") == settings));  // a failure would print both
  CHECK((setting.directory.read("used/report.html") == report));
  const auto past = setting.train("used", {"--resume", "--max_train_iterations", "1"});
  CAPTURE(past.printed);
  CHECK(past.status == 0);
  CHECK(has_part(setting.directory.read("used/config.toml"), "\nmax_train_iterations=1\n"));
  CHECK(has_part(past.printed, "4/1"));
  CHECK(has_part(past.printed, "(was finished already)"));
}
#endif
