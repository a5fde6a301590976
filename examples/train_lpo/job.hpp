// SPDX-License-Identifier: MIT
// What train_lpo can be told, and what it makes of that for one model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <lpo/reward/latent_reward_model.hpp>
#include <lpo/train/grpo_trainer.hpp>
#include <lpo/train/lpo_trainer.hpp>
#include <lpo/train/spo_trainer.hpp>

#include "../common/ranks.hpp"
#include "../common/validation_pictures.hpp"

namespace train_lpo {

using lpo::index_t;

/// The command line. Defaults are those of SD1.5 in the method's code; names are diffusers' and the method's.
struct Options {
  std::string model, variant, tokenizer, prediction_type, lrm, lrm_tokenizer, preference_model, prompt_file;
  std::string objective = "lpo", advantage_deviation = "population";
  std::string output_dir = "train-lpo-out", lora_targets = "to_q,to_k,to_v,to_out.0", dtype = "float32";
  std::string threshold_mode = "sigma", threshold_table = "closed_form", lrm_timestep = "departure",
              lr_scheduler = "constant", sdxl_uncond = "zeros", lrm_head_dtype = "float32", ref_precision = "same";
  std::vector<std::string> validation_prompts;
  bool full_finetuning = false, gradient_checkpointing = false, resume = false, dry_run = false;
  bool stable_logsigmoid = true, small_bucket_includes_t1 = true;
  bool dedup_forward = true;
  int resolution = 0, epochs = 5, iterations = 0, num_inference_steps = 20, candidates = 4, threads = 0;
  int divert_start_step = 0, divert_end_step = 0, calibration_rollouts = 2, max_skipped_steps = 10;
  int validation_images = 2, validation_epochs = 1, checkpoints_total_limit = 2;
  index_t sample_batch_size = 5, train_batch_size = 10, gradient_accumulation_steps = 1, rank = 4, lrm_max_rows = 0;
  index_t checkpointing_iterations = 50, lr_warmup_steps = 0;
  double lora_alpha = 0, guidance_scale = 5, eta = 1, beta = -1, clip_range = 0.1;
  double threshold_min = 0.35, threshold_max = 0.5, threshold_const = 0.5, threshold_quantile = 0;
  double learning_rate = 6e-5, adam_beta1 = 0.9, adam_beta2 = 0.999, adam_epsilon = 1e-8, adam_weight_decay = 1e-4;
  double max_grad_norm = 0, ema_decay = 0, loss_scale = 1;
  std::uint64_t seed = 42;
  lpo::RewardFeatureOptions features;  ///< of the reward model
  examples::DeviceOptions device;
};

/// Everything decided: what a pipeline works from.
struct Job {
  examples::Processes processes;
  Options options;
  examples::ModelSource model;
  std::vector<std::string> prompts;
  std::vector<std::string> lora_targets;
  lpo::SchedulerConfig schedule;
  lpo::LpoTrainerOptions trainer;  ///< of every objective; its beta is the objective's
  index_t iterations_per_epoch = 1;
  int resolution = 512;
  std::string command, settings;  ///< how it was called; the resolved settings as TOML

  bool is(const char* objective) const { return options.objective == objective; }
  /// What rates candidates.
  const std::string& rater() const { return is("spo") ? options.preference_model : options.lrm; }
  lpo::GrpoTrainerOptions grpo() const {
    lpo::GrpoTrainerOptions t;
    static_cast<lpo::RolloutTrainerOptions&>(t) = trainer;
    t.loss = {.beta = trainer.loss.beta, .clip = trainer.loss.clip};
    t.deviation = options.advantage_deviation == "sample" ? lpo::GroupDeviation::sample : lpo::GroupDeviation::population;
    return t;
  }
  lpo::SpoTrainerOptions spo() const {
    lpo::SpoTrainerOptions t;
    static_cast<lpo::LpoTrainerOptions&>(t) = trainer;
    return t;
  }
  /// "LPO", for people.
  std::string title() const { return is("grpo") ? "GRPO" : is("spo") ? "SPO" : "LPO"; }

  /// SDXL: what stands for the empty prompt.
  lpo::EmptyPrompt empty_prompt() const {
    return options.sdxl_uncond == "zeros" ? lpo::EmptyPrompt::zeros : lpo::EmptyPrompt::encoded;
  }
  examples::PolicySettings policy() const {
    return {model, options.full_finetuning, options.rank, options.lora_alpha, lora_targets, options.seed};
  }
  examples::ValidationSettings validation() const {
    return {.model = model,
            .prompts = options.validation_prompts,
            .images = options.validation_images,
            .steps = options.num_inference_steps,
            .guidance_scale = options.guidance_scale,
            .empty = empty_prompt(),
            .seed = options.seed,
            .resolution = resolution,
            .schedule = schedule,
            .folder = options.output_dir + "/validation",
            .method = title(),
            .unit = "epoch"};
  }
};

/// Reads policy and reward model, of the family F and the one that scores its latents, and trains. Weights and
/// activations are T.
template <const examples::ModelFamily& F, class T>
void align(const Job& job);

/// Prints what `align` would need, and writes nothing.
template <const examples::ModelFamily& F, class T>
void print_plan(const Job& job);

}  // namespace train_lpo
