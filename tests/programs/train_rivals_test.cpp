// SPDX-License-Identifier: MIT
// LPO's rivals on the tiny world: train_lpo --objective grpo and spo, and train_spm, which trains SPO's preference
// model: what they write, resuming, plans, presets, and what is refused.
#if defined(LPO_PROGRAM_TRAIN_LPO) && defined(LPO_PROGRAM_TRAIN_SPM)
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>

#include <lpo/io/lora_file.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/training_checkpoint.hpp>

#include "preference_pictures.hpp"
#include "program.hpp"
#include "tiny_reward_model.hpp"
#include "training_runs.hpp"

namespace {

const std::string presets = std::string(LPO_TEST_SOURCE_DIR) + "/examples/";

struct RivalSetting : PreferencePictures {
  std::string lrm = directory.file("lrm");
  std::string prompts = write_prompts(directory);

  RivalSetting() { write_reward_model(lrm); }

  ProgramResult preference(const std::string& out, const std::vector<std::string>& more = {}) const {
    const auto arguments = words(
        "--threads 1 --max_train_steps 4 --train_batch_size 4 --lr_warmup_steps 1 --learning_rate 1e-3 "
        "--num_validation_pairs 4 --checkpointing_steps 2",
        {"--pretrained_model_name_or_path", tiny_model, "--train_data_dir", pictures, "--output_dir",
         directory.file(out), "--cache_dir", directory.file("cache")});
    return run_program(LPO_PROGRAM_TRAIN_SPM, changed(arguments, more));
  }
  /// Two iterations of two prompts.
  ProgramResult align(const std::string& out, const std::vector<std::string>& more = {}) const {
    const auto arguments = words("--num_train_epochs 1", lpo_arguments(prompts, directory.file(out)));
    return run_program(LPO_PROGRAM_TRAIN_LPO, changed(arguments, more));
  }
};

}  // namespace

TEST_CASE("train_lpo --objective grpo trains all candidates on the reward model's scores") {
  const RivalSetting setting;
  const auto run = setting.align("grpo", {"--objective", "grpo", "--lrm", setting.lrm});
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  const auto lines = lpo::read_metrics(setting.directory.file("grpo/metrics.jsonl"));
  REQUIRE(lines.size() == 2);
  CHECK(lines[0]["kept"] == 8.0);  // two prompts, four steps
  CHECK(lines[0].contains("kl"));
  CHECK(lines[0]["train_ratio"].get<double>() > 0.8);
  CHECK(lpo::LoraFile(setting.directory.file("grpo/pytorch_lora_weights.safetensors")).rank() == 2);
  CHECK(has_part(setting.directory.read("grpo/report.html"), "GRPO finished"));
  const auto state = setting.directory.read("grpo/latest/trainer_state.json");
  CHECK(has_part(state, "\"beta\": 0.1"));

  // Cut and resumed: the same file.
  REQUIRE(setting.align("cut", {"--objective", "grpo", "--lrm", setting.lrm, "--max_train_iterations", "1"}).status ==
          0);
  REQUIRE(setting.align("cut", {"--objective", "grpo", "--lrm", setting.lrm, "--resume"}).status == 0);
  CHECK(setting.directory.read("cut/pytorch_lora_weights.safetensors") ==
        setting.directory.read("grpo/pytorch_lora_weights.safetensors"));
  const auto other = setting.align("cut", {"--lrm", setting.lrm, "--resume"});
  CHECK(other.status != 0);
  CHECK(has_part(other.printed, "trainer: saved \"grpo\", now \"lpo\""));
}

TEST_CASE("train_spm trains a preference model with which train_lpo --objective spo aligns") {
  const RivalSetting setting;
  const auto trained = setting.preference("spm");
  CAPTURE(trained.printed);
  REQUIRE(trained.status == 0);
  const std::string last = setting.directory.file("spm/spm-last");
  CHECK(has_part(trained.printed, last + "\n"));
  CHECK(has_part(trained.printed, setting.directory.file("spm/report.html")));
  const lpo::SafetensorsFile file(last + "/model.safetensors");
  for (const char* key : {"vision_model.embeddings.patch_embedding.weight", "vision_model.pre_layrnorm.weight",
                          "vision_model.encoder.layers.2.adaLN_modulation.1.bias", "t_embedder.mlp.2.weight",
                          "text_model.encoder.layers.1.mlp.fc1.weight", "text_projection.weight", "logit_scale"})
    CHECK_MESSAGE(file.contains(key), key);
  const auto lines = lpo::read_metrics(setting.directory.file("spm/metrics.jsonl"));
  REQUIRE(lines.size() == 4);
  CHECK(lines.back().contains("validation_accuracy"));

  // Cut and resumed: the same weights. Its cache of encoded pictures is used again.
  const auto cut = setting.preference(
      "spm-cut", {"--max_train_steps", "4", "--train_data_dir", setting.directory.file("cache/train")});
  REQUIRE(cut.status == 0);
  CHECK(setting.directory.read("spm-cut/spm-last/model.safetensors") ==
        setting.directory.read("spm/spm-last/model.safetensors"));
  std::filesystem::remove_all(setting.directory.file("spm-cut/checkpoint-4"));
  REQUIRE(
      setting.preference("spm-cut", {"--resume", "--train_data_dir", setting.directory.file("cache/train")}).status ==
      0);
  CHECK(setting.directory.read("spm-cut/spm-last/model.safetensors") ==
        setting.directory.read("spm/spm-last/model.safetensors"));

  const std::string config = setting.directory.read("spm-cut/config.toml");
  CHECK(has_part(setting.preference("spm-cut", {"--resume", "--learning_rate", "0.5"}).printed,
                 "was saved with other settings"));
  CHECK(setting.directory.read("spm-cut/config.toml") == config);

  const std::vector<std::string> spo = {"--objective", "spo", "--preference_model", last, "--divert_start_step", "1"};
  const auto run = setting.align("spo", spo);
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  const auto log = lpo::read_metrics(setting.directory.file("spo/metrics.jsonl"));
  REQUIRE(log.size() == 2);
  CHECK(log[0]["kept"].get<double>() > 0);
  CHECK(log[0]["kept"].get<double>() <= 6);  // two prompts, three of four steps
  CHECK(has_part(setting.directory.read("spo/report.html"), "SPO finished"));
  auto first = spo, rest = spo;
  first.insert(first.end(), {"--max_train_iterations", "1"});
  rest.push_back("--resume");
  REQUIRE(setting.align("spo-cut", first).status == 0);
  REQUIRE(setting.align("spo-cut", rest).status == 0);
  CHECK(setting.directory.read("spo-cut/pytorch_lora_weights.safetensors") ==
        setting.directory.read("spo/pytorch_lora_weights.safetensors"));
}

TEST_CASE("plans and presets of the rivals") {
  const RivalSetting setting;
  for (const std::string name : {"grpo_sd15", "spo_sd15", "spo_sdxl"}) {
    const auto plan =
        run_program(LPO_PROGRAM_TRAIN_LPO,
                    {"--config", presets + "train_lpo/configs/" + name + ".toml", "--pretrained_model_name_or_path",
                     tiny_model, "--lrm", setting.lrm, "--preference_model", "none-yet", "--prompt_file",
                     setting.prompts, "--output_dir", setting.directory.file("out"), "--dry-run", "--rank", "4"});
    CAPTURE(plan.printed);
    CHECK(plan.status == 0);
    CHECK(has_part(plan.printed, name == "spo_sdxl" ? "2 prompts, 20 steps, 2 candidates, guidance 5"
                                                    : "4 prompts, 20 steps, 4 candidates, guidance 5"));
    CHECK(has_part(plan.printed, has_part(name, "spo") ? "spo, beta 10\n" : "grpo, beta 0.1\n"));
  }
  for (const std::string name : {"spm_sd15", "spm_sdxl"}) {
    const auto plan = run_program(LPO_PROGRAM_TRAIN_SPM,
                                  {"--config", presets + "train_spm/configs/" + name + ".toml",
                                   "--pretrained_model_name_or_path", tiny_model, "--train_data_dir", setting.pictures,
                                   "--resolution", "32", "--output_dir", setting.directory.file("out"), "--dry-run"});
    CAPTURE(plan.printed);
    CHECK(plan.status == 0);
    for (const char* part : {"random weights", "20 pairs of pictures", "activations  about", "memory       about",
                             name == "spm_sdxl" ? "7000 of 64 pairs, 1 at once, learning rate 1e-06"
                                                : "8000 of 64 pairs, 4 at once, learning rate 3e-06"})
      CHECK_MESSAGE(has_part(plan.printed, part), part);
    CHECK(memory_for_model(plan.printed) > 11.2e6);
    CHECK(memory_for_model(plan.printed) < 2e8);
  }
  CHECK_FALSE(lpo::directory_exists(setting.directory.file("out")));
}

TEST_CASE("the rivals say what is wrong") {
  const RivalSetting setting;
  const auto says = [&](const std::vector<std::string>& more, const char* text) {
    const auto run = setting.align("out", more);
    CAPTURE(run.printed);
    CHECK(run.status != 0);
    CHECK_MESSAGE(has_part(run.printed, text), text);
  };
  says({}, "--objective lpo needs --lrm");
  says({"--objective", "spo", "--lrm", setting.lrm}, "--objective spo needs --preference_model");
  says({"--objective", "spo", "--preference_model", setting.lrm}, "no weights; tried model.safetensors");
  says({"--objective", "grpo", "--lrm", setting.lrm, "--threshold_mode", "sigma", "--threshold_quantile", "0.5"},
       "trains all candidates, without thresholds");
  const auto both = setting.preference("out", {"--clip_model", "a", "--preference_model", "b"});
  CHECK(both.status != 0);
  CHECK(has_part(both.printed, "give one of them"));
}

#endif
