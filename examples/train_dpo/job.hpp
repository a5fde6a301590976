// SPDX-License-Identifier: MIT
// What train_dpo can be told, and what it makes of that for one model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <lpo/reward/mpcf.hpp>
#include <lpo/train/dpo_trainer.hpp>

#include "../common/encode_pictures.hpp"
#include "../common/options.hpp"
#include "../common/ranks.hpp"
#include "../common/validation_pictures.hpp"

namespace train_dpo {

using lpo::index_t;

/// The command line. Defaults are those of SD1.5 in the method's code (arXiv 2311.12908); names are diffusers' and the
/// method's.
struct Options {
  std::string model, variant, tokenizer, prediction_type, train_data, score_file, cache_dir;
  std::string output_dir = "train-dpo-out", lora_targets = "to_q,to_k,to_v,to_out.0", dtype = "float32";
  std::string lr_scheduler = "constant_with_warmup";
  std::vector<std::string> validation_prompts;
  lpo::MpcfOptions mpcf;
  bool full_finetuning = false, gradient_checkpointing = false, resume = false, dry_run = false, encode_only = false;
  int resolution = 0, threads = 0, max_skipped_steps = 10, checkpoints_total_limit = 2;
  int validation_images = 2, num_inference_steps = 20;
  index_t max_train_steps = 2000, train_batch_size = 1, gradient_accumulation_steps = 2048, rank = 4;
  index_t lr_warmup_steps = 500, checkpointing_steps = 100, validation_steps = 500;
  double lora_alpha = 0, beta = 5000, proportion_empty_prompts = 0.2, guidance_scale = 7.5;
  double learning_rate = 2.048e-5, adam_beta1 = 0.9, adam_beta2 = 0.999, adam_epsilon = 1e-8, adam_weight_decay = 1e-2;
  double max_grad_norm = 1, ema_decay = 0, loss_scale = 1;
  std::uint64_t seed = 42;
  examples::DeviceOptions device;
};

/// Everything decided: what a pipeline works from.
struct Job {
  examples::Processes processes;
  Options options;
  examples::ModelSource model;
  examples::DataSet data;
  lpo::SchedulerConfig schedule;
  lpo::DpoTrainerOptions trainer;
  int resolution = 512;
  std::string command, settings;  ///< how it was called; the resolved settings as TOML

  examples::PairSettings pairs() const { return {model, resolution, options.score_file, options.mpcf, true}; }
  examples::PolicySettings policy() const {
    return {model,
            options.full_finetuning,
            options.rank,
            options.lora_alpha,
            examples::comma_list(options.lora_targets),
            options.seed};
  }
  examples::ValidationSettings validation() const {
    return {.model = model,
            .prompts = options.validation_prompts,
            .images = options.validation_images,
            .steps = options.num_inference_steps,
            .guidance_scale = options.guidance_scale,
            .empty = model.zeros_for_empty_prompt() ? lpo::EmptyPrompt::zeros : lpo::EmptyPrompt::encoded,
            .seed = options.seed,
            .resolution = resolution,
            .schedule = schedule,
            .folder = options.output_dir + "/validation",
            .method = "Diffusion-DPO",
            .unit = "step",
            .digits = 6};
  }
};

/// Encodes the pictures that are not encoded yet, reads the policy, of family F, and trains. Weights and activations
/// are T.
template <const examples::ModelFamily& F, class T>
void align(const Job& job);

/// Prints what `align` would need, and writes nothing.
template <const examples::ModelFamily& F, class T>
void print_plan(const Job& job);

}  // namespace train_dpo
