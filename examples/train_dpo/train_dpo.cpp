// SPDX-License-Identifier: MIT
// train_dpo: aligns a Stable Diffusion model with Diffusion-DPO, from pairs of pictures that people preferred.
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "../common/training_options.hpp"
#include "../common/training_program.hpp"
#include "job.hpp"

namespace {

using train_dpo::Job, train_dpo::Options;

lpo::DpoTrainerOptions trainer_options(const Options& o) {
  lpo::DpoTrainerOptions t;
  t.max_train_steps = o.max_train_steps;
  t.train_batch_size = o.train_batch_size * o.gradient_accumulation_steps;
  t.micro_batch_size = o.train_batch_size;
  t.beta_dpo = o.beta;
  t.proportion_empty_prompts = o.proportion_empty_prompts;
  t.learning_rate = o.learning_rate;
  t.lr_scheduler = examples::learning_rate_kind(o.lr_scheduler);
  t.lr_warmup_steps = o.lr_warmup_steps;
  t.optimizer = {
      .beta1 = o.adam_beta1, .beta2 = o.adam_beta2, .epsilon = o.adam_epsilon, .weight_decay = o.adam_weight_decay};
  t.max_grad_norm = o.max_grad_norm;
  t.ema_decay = o.ema_decay;
  t.loss_scale = o.loss_scale;
  t.max_skipped_steps = o.max_skipped_steps;
  t.gradient_checkpointing = o.gradient_checkpointing;
  t.checkpointing_steps = o.checkpointing_steps;
  t.checkpoints_total_limit = o.checkpoints_total_limit;
  t.seed = o.seed;
  t.output_dir = o.output_dir;
  t.resume = o.resume;
  return t;
}

Job make_job(const Options& o, const examples::ModelSource& model, const examples::ModelFamily& family) {
  Job job;
  job.options = o;
  if (o.cache_dir.empty()) job.options.cache_dir = o.output_dir + "/cache";
  job.model = model;
  job.data = examples::open_data_set(o.train_data);
  if (!o.score_file.empty() && !job.data.has_pictures())
    throw lpo::ValueError("[train_dpo] --score_file: " + o.train_data + " is encoded already; filter while encoding");
  if (o.score_file.empty() && o.mpcf.strategy != 0 && o.mpcf.strategy != 2)
    throw lpo::ValueError("[train_dpo] --mpcf_strategy needs the scores of the pairs; give --score_file");
  const auto predicted =
      o.prediction_type.empty() ? std::nullopt : std::optional(lpo::parse_prediction_type(o.prediction_type));
  job.schedule = model.scheduler(lpo::SamplerKind::ddim, predicted);
  job.resolution = examples::training_resolution("train_dpo", o.resolution, model, family, predicted);
  job.trainer = trainer_options(o);
  job.trainer.prediction_type = job.schedule.prediction_type;
  job.trainer.more_settings["resolution"] = lpo::message(job.resolution);
  return job;
}

void program(const Options& o, const CLI::App& app, const std::string& command, const examples::Processes& processes) {
  if (!o.resume && !o.dry_run && !o.encode_only) examples::refuse_earlier_run("train_dpo", o.output_dir);
  examples::run_policy_program(
      o, app, command, processes, make_job,
      []<const examples::ModelFamily & F, class T>(const Job& job) { train_dpo::align<F, T>(job); },
      []<const examples::ModelFamily & F, class T>(const Job& job) { train_dpo::print_plan<F, T>(job); });
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{
      "Align a Stable Diffusion model (SD1.5, SD2.1, SDXL or lpo's tiny world) with Diffusion-DPO, on pairs of "
      "pictures."};
  app.option_defaults()->always_capture_default();
  app.footer(examples::ranks_help);
  const examples::OptionList add{app};
  examples::add_config_option(app);
  examples::add_version_option(app, "train_dpo");
  examples::add_model_options(app, o);
  add("train_data_dir", o.train_data,
      "pairs: a folder with pairs.jsonl, a folder of *.tar shards, the cache of an earlier run (of train_lrm, too), or "
      "one such file")
      ->required();
  examples::add_filter_options(add, o);
  add("cache_dir", o.cache_dir, "where encoded pictures are kept [OUTPUT_DIR/cache]");
  add.flag("encode_only", o.encode_only, "encode the pictures and stop");
  examples::add_policy_run_options(add, o);
  add("checkpointing_steps", o.checkpointing_steps, "a checkpoint every so many steps; 0 is none")
      ->check(examples::not_negative);

  add("max_train_steps", o.max_train_steps, "optimizer steps")->check(examples::positive);
  app.add_option("--beta_dpo,--beta-dpo,--beta", o.beta, "strength of the preference against the reference")
      ->check(examples::positive);
  add("proportion_empty_prompts", o.proportion_empty_prompts, "share of pairs that are trained without their prompt")
      ->check(CLI::Range(0.0, 1.0));
  examples::add_policy_training_options(add, o);
  add("lr_scheduler", o.lr_scheduler, "of the learning rate")
      ->check(CLI::IsMember({"constant", "constant_with_warmup", "linear", "cosine"}));
  add("max_grad_norm", o.max_grad_norm, "gradients are scaled down to this norm; 0 is off")
      ->check(examples::not_negative);

  add("validation_steps", o.validation_steps, "draw every so many steps; 0 is at the beginning and the end only")
      ->check(examples::not_negative);
  add("num_inference_steps", o.num_inference_steps, "denoising steps of these pictures")->check(CLI::Range(1, 1000));
  add("guidance_scale", o.guidance_scale, "classifier-free guidance of these pictures; training has none")
      ->check(examples::not_negative);
  return examples::run_ranks("train_dpo", [&](const examples::Processes& processes) {
    examples::expect_finite_numbers(app);
    CLI11_PARSE(app, argc, argv);
    program(o, app, examples::command_line("train_dpo", argc, argv), processes);
    return 0;
  });
}
