// SPDX-License-Identifier: MIT
// train_lrm: trains a latent reward model from a Stable Diffusion model and pairs of pictures that people preferred.
#include <cstdio>
#include <map>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "../common/reward_features.hpp"
#include "../common/training_options.hpp"
#include "../common/training_program.hpp"
#include "options.hpp"

namespace {

using train_lrm::Job, train_lrm::Options;

/// Names that are enumerations of the library.
void resolve_names(Options& o) {
  using Kind = lpo::RewardLossOptions::Kind;
  static const std::map<std::string, Kind> losses = {
      {"pair", Kind::pair}, {"batch", Kind::batch}, {"both", Kind::both}};
  auto& t = o.training;
  t.loss.kind = losses.at(o.loss);
  t.lr_scheduler = examples::learning_rate_kind(o.lr_scheduler);
  t.lr_first_step = o.lr_first_step == "official" ? lpo::FirstStepRate::official : lpo::FirstStepRate::zero;
  t.batch_unit = o.batch_unit == "prompt" ? lpo::BatchUnit::prompt : lpo::BatchUnit::pair;
  t.shared_pair_noise = o.pair_noise == "shared";
  // The contrastive losses need all pairs at once.
  t.micro_batch_size = o.micro_batch_size >= 0 ? o.micro_batch_size : t.loss.kind == Kind::pair ? 4 : 0;
  o.features.multi_scale = !o.single_scale;
  if (o.validation_timesteps.empty()) o.validation_timesteps = {1, 201, 401, 601, 801};
}

void check(const Options& o) {
  const auto fail = [](const std::string& text) { throw lpo::ValueError("[train_lrm] " + text); };
  if (o.score_file.empty() && o.mpcf.strategy != 0 && o.mpcf.strategy != 2)
    fail("--mpcf_strategy needs the scores of the pairs; give --score_file");
  if (!o.validation_data.empty() && o.validation_pairs > 0)
    fail("--validation_data_dir and --num_validation_pairs both say what to validate on; give one of them");
  if (!o.training.resume && !o.dry_run && !o.encode_only) examples::refuse_earlier_run("train_lrm", o.output_dir);
}

int program(Options& o, CLI::App& app, const std::string& command, const examples::Processes& processes) {
  resolve_names(o);
  if (!o.lrm.empty())
    examples::settle_reward_features(
        app, "train_lrm", o.lrm, o.features, processes.first(),
        {.multi_scale = nullptr, .multi_scale_cfg = "--multi_scale_cfg", .single_scale = "--single_scale"});
  check(o);
  examples::note_unused_warmup(app, o.lr_scheduler, o.training.lr_warmup_steps);
  if (o.cache_dir.empty()) o.cache_dir = o.output_dir + "/cache";
  o.training.output_dir = o.output_dir;
  Job job;
  job.model = examples::ModelSource(o.model, o.variant, o.tokenizer);
  job.train = examples::open_data_set(o.train_data);
  job.validation = examples::open_data_set(o.validation_data);
  if (!o.score_file.empty() && !job.train.has_pictures())
    throw lpo::ValueError("[train_lrm] --score_file: " + o.train_data + " is encoded already; filter while encoding");
  job.command = command;
  job.processes = processes;
  int status = 0;
  examples::with_family(
      job.model.path(), [&](const examples::ModelFamily& family) { return job.model.differences(family); },
      [&]<const examples::ModelFamily & F>() {
        job.resolution = examples::training_resolution("train_lrm", o.resolution, job.model, F);
        job.options = o;
        std::optional<examples::RunFolder> folder;
        if (!o.dry_run) job.settings = folder.emplace(app, o.output_dir, processes).settings();
        status = train_lrm::train<F>(job);
      });
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  auto& t = o.training;
  CLI::App app{
      "Train a latent reward model on pairs of pictures, from a Stable Diffusion model (SD1.5, SDXL or lpo's tiny "
      "world)."};
  app.option_defaults()->always_capture_default();
  app.footer(examples::ranks_help);
  const examples::OptionList add{app};
  t.checkpointing_steps = 100;
  examples::add_config_option(app);
  examples::add_version_option(app, "train_lrm");
  add("pretrained_model_name_or_path", o.model,
      "base model: a diffusers folder, or a single .safetensors or .ckpt file")
      ->required();
  add("variant", o.variant, "weights ….VARIANT.safetensors, for example fp16");
  add("tokenizer", o.tokenizer,
      "for single files, which have none: a pipeline's or tokenizer's folder, tokenizer.json, or "
      "bpe_simple_vocab_16e6.txt.gz");
  add("lrm", o.lrm, "go on from this reward model's folder instead of the base model");
  add("text_projection", o.text_projection,
      "file with text_projection.weight of the CLIP model that the text encoder is from; otherwise it is drawn");
  examples::add_reward_training_options(add, o);
  examples::add_filter_options(add, o);
  add.flag("encode_only", o.encode_only, "encode the pictures and stop");
  add("micro_batch_size", o.micro_batch_size,
      "pairs in memory at once; 0 is all; -1 is 4, or all with the contrastive losses");
  add("batch_unit", o.batch_unit, "what is drawn: single pairs, or prompts with all their pairs")
      ->check(CLI::IsMember({"pair", "prompt"}));
  add("lr_scheduler", o.lr_scheduler, "of the learning rate")
      ->check(CLI::IsMember({"log_warmup_decay", "constant", "constant_with_warmup", "linear", "cosine"}));
  add("lr_first_step", o.lr_first_step, "official: the first step has the peak rate, as in the authors' runs")
      ->check(CLI::IsMember({"zero", "official"}));
  add("loss", o.loss, "pair: within pairs; batch: each with all; both")
      ->check(CLI::IsMember({"pair", "batch", "both"}));
  add("batch_coeff", t.loss.batch_coefficient, "weight of the batch loss in both");
  add("pair_noise", o.pair_noise, "noise of the two pictures of a pair")
      ->check(CLI::IsMember({"independent", "shared"}));
  add("noise_offset", t.noise_offset, "adds so much of one normal number for each picture and channel to the noise")
      ->check(examples::not_negative);
  add.flag("compare_between_timestep", t.compare_between_timestep,
           "also train on the preferred pictures alone, each at two neighbouring timesteps: the less noisy one is better");
  add("aux_loss_coeff", t.loss.aux_coefficient, "weight of what compare_between_timestep adds")
      ->check(examples::not_negative);
  add("lrm_guidance", o.features.guidance, "visual feature enhancement; 1 is none; with --lrm, as that was trained");
  add.flag("single_scale", o.single_scale, "pool the middle block only; with --lrm, as that was trained");
  add.flag("multi_scale_cfg", o.features.multi_scale_cfg, "guide the features of every level, not of the middle alone");
  add.flag("freeze_text_encoder", o.freeze_text_encoder, "train the UNet half and the projections only");
  return examples::run_ranks("train_lrm", [&](const examples::Processes& processes) {
    examples::expect_finite_numbers(app);
    CLI11_PARSE(app, argc, argv);
    return program(o, app, examples::command_line("train_lrm", argc, argv), processes);
  });
}
