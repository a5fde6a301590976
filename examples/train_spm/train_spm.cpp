// SPDX-License-Identifier: MIT
// train_spm: trains SPO's step-aware preference model on pairs of pictures; train_lpo --objective spo aligns with it.
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "../common/training_options.hpp"
#include "../common/training_program.hpp"
#include "job.hpp"

namespace {

using train_spm::Job, train_spm::Options;

void check(const Options& o) {
  const auto fail = [](const std::string& text) { throw lpo::ValueError("[train_spm] " + text); };
  if (!o.clip_model.empty() && !o.preference_model.empty())
    fail("--clip_model and --preference_model both say what to start from; give one of them");
  if (!o.validation_data.empty() && o.validation_pairs > 0)
    fail("--validation_data_dir and --num_validation_pairs both say what to validate on; give one of them");
  if (!o.training.resume && !o.dry_run) examples::refuse_earlier_run("train_spm", o.output_dir);
}

int program(Options& o, const CLI::App& app, const std::string& command, const examples::Processes& processes) {
  o.training.lr_scheduler = examples::learning_rate_kind(o.lr_scheduler);
  if (o.validation_timesteps.empty()) o.validation_timesteps = {1, 201, 401, 601, 801};
  check(o);
  examples::note_unused_warmup(app, o.lr_scheduler, o.training.lr_warmup_steps);
  if (o.cache_dir.empty()) o.cache_dir = o.output_dir + "/cache";
  o.training.output_dir = o.output_dir;
  Job job;
  job.model = examples::ModelSource(o.model, o.variant, o.tokenizer);
  job.train = examples::open_data_set(o.train_data);
  job.validation = examples::open_data_set(o.validation_data);
  job.command = command;
  job.processes = processes;
  int status = 0;
  examples::with_family(
      job.model.path(), [&](const examples::ModelFamily& family) { return job.model.differences(family); },
      [&]<const examples::ModelFamily & F>() {
        job.resolution = examples::training_resolution("train_spm", o.resolution, job.model, F);
        job.options = o;
        std::optional<examples::RunFolder> folder;
        if (!o.dry_run) job.settings = folder.emplace(app, o.output_dir, processes).settings();
        status = train_spm::train<F>(job);
      });
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  auto& t = o.training;
  t.max_train_steps = 8000;
  t.train_batch_size = 64;
  t.micro_batch_size = 4;
  t.learning_rate = 3e-6;
  t.shared_pair_noise = true;
  t.timestep_interval = 1;
  t.largest_timestep = 999;
  t.checkpointing_steps = 100;
  CLI::App app{
      "Train SPO's step-aware preference model on pairs of pictures: it rates what a Stable Diffusion model (SD1.5, "
      "SD2.1, SDXL or lpo's tiny world) predicts from noisy latents. train_lpo --objective spo aligns the model with it."};
  app.option_defaults()->always_capture_default();
  app.footer(examples::ranks_help);
  const examples::OptionList add{app};
  examples::add_config_option(app);
  examples::add_version_option(app, "train_spm");
  add("pretrained_model_name_or_path", o.model,
      "the model that predicts pictures: a diffusers folder, or a single .safetensors or .ckpt file")
      ->required();
  add("variant", o.variant, "weights ….VARIANT.safetensors, for example fp16");
  add("tokenizer", o.tokenizer, "for single files, which have none: a pipeline's or tokenizer's folder, or file");
  add("clip_model", o.clip_model, "begin with the weights of this CLIP model (PickScore): its folder, or a file");
  add("preference_model", o.preference_model, "or with those of an earlier step-aware preference model");
  examples::add_reward_training_options(add, o);
  add("guidance_scale", o.guidance_scale, "with which pictures are predicted; 1 is none")
      ->check(examples::not_negative);
  add("micro_batch_size", t.micro_batch_size, "pairs in memory at once; 0 is all")->check(examples::not_negative);
  add("lr_scheduler", o.lr_scheduler, "of the learning rate")
      ->check(CLI::IsMember({"constant", "constant_with_warmup", "linear", "cosine"}));
  add.flag("freeze_text_model", o.freeze_text_model, "train the vision tower alone");
  return examples::run_ranks("train_spm", [&](const examples::Processes& processes) {
    examples::expect_finite_numbers(app);
    CLI11_PARSE(app, argc, argv);
    return program(o, app, examples::command_line("train_spm", argc, argv), processes);
  });
}
