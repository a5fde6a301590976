// SPDX-License-Identifier: MIT
// train_lpo: aligns a Stable Diffusion model with latent preference optimization, from a latent reward model and
// prompts.
#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "../common/reward_features.hpp"
#include "../common/training_options.hpp"
#include "../common/training_program.hpp"
#include "job.hpp"

namespace {

using train_lpo::Job, train_lpo::Options;

lpo::ThresholdMode threshold_mode(const std::string& name) {
  if (name == "variance") return lpo::ThresholdMode::variance;
  if (name == "linear") return lpo::ThresholdMode::linear;
  return name == "const" ? lpo::ThresholdMode::constant : lpo::ThresholdMode::sigma;
}

lpo::LpoTrainerOptions trainer_options(const Options& o) {
  lpo::LpoTrainerOptions t;
  t.sample_batch_size = o.sample_batch_size;
  t.train_batch_size = o.train_batch_size * o.gradient_accumulation_steps;
  t.micro_batch_size = o.train_batch_size;
  t.sample_steps = o.num_inference_steps;
  t.guidance_scale = o.guidance_scale;
  t.eta = o.eta;
  t.rollout.candidates = o.candidates;
  t.rollout.divert_start_step = o.divert_start_step;
  t.rollout.divert_end_step = o.divert_end_step;
  t.rollout.lrm_timestep = o.lrm_timestep == "arrival" ? lpo::LrmTimestep::arrival : lpo::LrmTimestep::departure;
  t.threshold.mode = threshold_mode(o.threshold_mode);
  t.threshold.table =
      o.threshold_table == "official20" ? lpo::ThresholdTable::official20 : lpo::ThresholdTable::closed_form;
  t.threshold.minimum = o.threshold_min;
  t.threshold.maximum = o.threshold_max;
  t.threshold.constant = o.threshold_const;
  t.threshold_quantile = o.threshold_quantile;
  t.calibration_rollouts = o.calibration_rollouts;
  const double usual_beta = o.objective == "grpo" ? 0.1 : o.objective == "spo" ? 10 : 500;
  t.loss = {.beta = o.beta >= 0 ? o.beta : usual_beta, .clip = o.clip_range, .stable_logsigmoid = o.stable_logsigmoid};
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
  t.small_bucket_includes_t1 = o.small_bucket_includes_t1;
  t.max_rows = o.lrm_max_rows;
  t.half_scores = o.lrm_head_dtype == "float16";
  t.half_reference = o.ref_precision == "official";
  t.dedup_forward = o.dedup_forward;
  t.checkpointing_iterations = o.checkpointing_iterations;
  t.checkpoints_total_limit = o.checkpoints_total_limit;
  t.seed = o.seed;
  t.output_dir = o.output_dir;
  t.resume = o.resume;
  return t;
}

Job make_job(const Options& o, const examples::ModelSource& model, const examples::ModelFamily& family) {
  Job job;
  job.options = o;
  job.model = model;
  job.prompts = examples::read_captions(o.prompt_file);
  job.lora_targets = examples::comma_list(o.lora_targets);
  const auto predicted =
      o.prediction_type.empty() ? std::nullopt : std::optional(lpo::parse_prediction_type(o.prediction_type));
  job.schedule = model.scheduler(lpo::SamplerKind::ddim, predicted);
  job.resolution = examples::training_resolution("train_lpo", o.resolution, model, family, predicted);
  if (job.rater().empty())
    throw lpo::ValueError("[train_lpo] --objective " + o.objective +
                          (o.objective == "spo" ? " needs --preference_model, which train_spm trains"
                                                : " needs --lrm, a reward model's folder"));
  if (o.objective == "grpo" && o.threshold_quantile > 0)
    throw lpo::ValueError("[train_lpo] --threshold_quantile: --objective grpo trains all candidates, without thresholds");
  if (o.objective == "grpo" && !o.dedup_forward)
    throw lpo::ValueError(
        "[train_lpo] --dedup_forward: --objective grpo trains groups of candidates, which share a pass; false is for pairs");
  if (!(o.eta > 0))
    throw lpo::ValueError(
        "[train_lpo] --eta is 0; candidates differ by the noise of their step, so give a number above 0");
  const int end = o.divert_end_step > 0 ? std::min(o.divert_end_step, o.num_inference_steps) : o.num_inference_steps;
  if (o.divert_start_step >= end)
    throw lpo::ValueError(
        lpo::message("[train_lpo] --divert_start_step ", o.divert_start_step, ": roll-outs end before step ", end, " (",
                     end < o.num_inference_steps ? "--divert_end_step" : "--num_inference_steps",
                     "), so no candidates would be compared; give at most ", end - 1));
  if (o.threshold_quantile > 0 && o.threshold_mode == "const")
    throw lpo::ValueError(
        "[train_lpo] --threshold_quantile finds thresholds that grow with the noise, and --threshold_mode is const; "
        "use sigma, variance or linear, or give --threshold_const alone");
  job.trainer = trainer_options(o);
  const auto prompts = static_cast<lpo::index_t>(job.prompts.size());
  job.trainer.sample_batch_size = std::min(job.trainer.sample_batch_size, prompts);
  job.iterations_per_epoch = (prompts + job.trainer.sample_batch_size - 1) / job.trainer.sample_batch_size;
  job.trainer.max_train_iterations = o.iterations > 0 ? o.iterations : o.epochs * job.iterations_per_epoch;
  return job;
}

void program(Options& o, CLI::App& app, const std::string& command, const examples::Processes& processes) {
  if (o.objective != "spo" && !o.lrm.empty())
    examples::settle_reward_features(app, "train_lpo", o.lrm, o.features, processes.first());
  if (!o.resume && !o.dry_run) examples::refuse_earlier_run("train_lpo", o.output_dir);
  examples::run_policy_program(
      o, app, command, processes, make_job,
      []<const examples::ModelFamily & F, class T>(const Job& job) { train_lpo::align<F, T>(job); },
      []<const examples::ModelFamily & F, class T>(const Job& job) { train_lpo::print_plan<F, T>(job); });
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{
      "Align a Stable Diffusion model (SD1.5, SD2.1, SDXL or lpo's tiny world) with latent preference optimization, or "
      "with its rivals GRPO and SPO."};
  app.option_defaults()->always_capture_default();
  app.footer(examples::ranks_help);
  const examples::OptionList add{app};
  examples::add_config_option(app);
  examples::add_version_option(app, "train_lpo");
  examples::add_model_options(app, o);
  add("lrm", o.lrm, "reward model folder: unet/, text_encoder/, state_dict.pt or head.safetensors");
  add("objective", o.objective,
      "lpo: clear pairs by the reward model; grpo: all candidates, weighted by its scores; spo: clear pairs by a "
      "preference model that looks at predicted pictures")
      ->check(CLI::IsMember({"lpo", "grpo", "spo"}));
  add("preference_model", o.preference_model, "of objective spo: a step-aware preference model, which train_spm writes");
  add("advantage_deviation", o.advantage_deviation, "of objective grpo: divide by K (population) or K - 1 (sample)")
      ->check(CLI::IsMember({"population", "sample"}));
  add("lrm_tokenizer", o.lrm_tokenizer, "the reward model's tokenizer [its own, or the model's]");
  add("prompt_file", o.prompt_file,
      "JSON list of prompts or of objects with a \"caption\", or plain text, a prompt a line")
      ->required();
  examples::add_policy_run_options(add, o);
  add("checkpointing_iterations", o.checkpointing_iterations, "a checkpoint every so many iterations; 0 is none")
      ->check(examples::not_negative);

  add("num_train_epochs", o.epochs, "passes over the prompts")->check(examples::positive);
  add("max_train_iterations", o.iterations, "roll-outs in all, instead of epochs; 0 takes the epochs")
      ->check(examples::not_negative);
  add("sample_batch_size", o.sample_batch_size, "prompts of a roll-out")->check(examples::positive);
  add("num_inference_steps", o.num_inference_steps, "S, denoising steps")->check(CLI::Range(1, 1000));
  add("guidance_scale", o.guidance_scale, "classifier-free guidance, in sampling and training; 1 is none")
      ->check(examples::not_negative);
  add("eta", o.eta, "noise of a step, as in DDIM")->check(CLI::Range(0.0, 1.0));
  add("num_candidates", o.candidates, "K, next latents that are drawn and compared at each step")
      ->check(CLI::Range(2, 64));
  add("divert_start_step", o.divert_start_step, "steps before it are not compared")->check(examples::not_negative);
  add("divert_end_step", o.divert_end_step, "the roll-out ends before it; 0 is at the end")
      ->check(examples::not_negative);
  add("lrm_timestep", o.lrm_timestep,
      "what the reward model is told: departure (the paper's runs) or arrival (as it was trained)")
      ->check(CLI::IsMember({"departure", "arrival"}));
  examples::add_reward_feature_options(add, o.features);
  add("lrm_head_dtype", o.lrm_head_dtype, "float16 rounds scores as the original code does")
      ->check(CLI::IsMember({"float32", "float16"}));
  add("lrm_max_rows", o.lrm_max_rows, "candidates scored at once, for memory; 0 is all")->check(examples::not_negative);
  add("threshold_mode", o.threshold_mode, "what the smallest gap of a pair grows with")
      ->check(CLI::IsMember({"sigma", "variance", "linear", "const"}));
  add("threshold_table", o.threshold_table, "closed_form, or the rounded tables of the original code")
      ->check(CLI::IsMember({"closed_form", "official20"}));
  add("threshold_min", o.threshold_min, "at the least noise")->check(CLI::Range(0.0, 1.0));
  add("threshold_max", o.threshold_max, "at the most noise")->check(CLI::Range(0.0, 1.0));
  add("threshold_const", o.threshold_const, "of mode const")->check(CLI::Range(0.0, 1.0));
  add("threshold_quantile", o.threshold_quantile,
      "above 0: find threshold_min and threshold_max such that about this share of pairs is rejected")
      ->check(CLI::Range(0.0, 0.99));
  add("calibration_rollouts", o.calibration_rollouts, "roll-outs for that")->check(examples::positive);

  app.add_option("--beta,--beta_dpo,--beta-dpo", o.beta,
                 "strength of the preference against the reference; grpo: weight of the divergence from it; below 0 takes "
                 "the objective's: lpo 500, grpo 0.1, spo 10");
  add("clip_range", o.clip_range, "ratios stay within 1 - this and 1 + this")->check(CLI::Range(1e-4, 0.999));
  add("stable_logsigmoid", o.stable_logsigmoid, "true or false: false is the original's loss, infinite for far pairs");
  add("dedup_forward", o.dedup_forward,
      "true or false: false runs policy and reference for win and for lose, as the original code does: the same numbers "
      "for twice the work");
  add("ref_precision", o.ref_precision,
      "official rounds the reference's predictions to float16 and guides them in float16, which the original code does "
      "with the reference alone")
      ->check(CLI::IsMember({"same", "official"}));
  add("small_bucket_includes_t1", o.small_bucket_includes_t1, "true or false: false is the original's log");
  add("sdxl_uncond", o.sdxl_uncond, "SDXL: what stands for the empty prompt")
      ->check(CLI::IsMember({"zeros", "encoded"}));
  examples::add_policy_training_options(add, o);
  add("lr_scheduler", o.lr_scheduler, "constant or constant_with_warmup")
      ->check(CLI::IsMember({"constant", "constant_with_warmup"}));
  add("max_grad_norm", o.max_grad_norm,
      "gradients are scaled down to this norm; 0 is off, as the original code in effect")
      ->check(examples::not_negative);
  add("validation_epochs", o.validation_epochs, "draw after every so many epochs")->check(examples::positive);
  return examples::run_ranks("train_lpo", [&](const examples::Processes& processes) {
    examples::expect_finite_numbers(app);
    CLI11_PARSE(app, argc, argv);
    program(o, app, examples::command_line("train_lpo", argc, argv), processes);
    return 0;
  });
}
