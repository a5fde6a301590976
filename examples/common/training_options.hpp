// SPDX-License-Identifier: MIT
// Options that training programs share: of the run, of AdamW, of a policy (train_lpo, train_dpo), and of a reward model
// (train_lrm, train_spm).
#pragma once

#include "option_list.hpp"

namespace examples {

inline void add_adamw_options(const OptionList& add, double& beta1, double& beta2, double& epsilon, double& decay) {
  add("adam_beta1", beta1, "AdamW's")->check(CLI::Range(0.0, 0.99999));
  add("adam_beta2", beta2, "AdamW's")->check(CLI::Range(0.0, 0.9999999));
  add("adam_epsilon", epsilon, "AdamW's")->check(positive);
  add("adam_weight_decay", decay, "AdamW's, of all trained weights")->check(not_negative);
}

/// Of the run of a policy: where it goes, seed, size, storage.
template <class Options>
void add_policy_run_options(const OptionList& add, Options& o) {
  add("output_dir", o.output_dir, "where everything goes");
  add.flag("resume", o.resume, "go on from the newest checkpoint in output_dir, if there is one");
  add.flag("dry_run", o.dry_run, "print what the run would need, and stop");
  add("seed", o.seed, "seed of everything");
  add("threads", o.threads, "0 takes all")->check(not_negative);
  add_device_options(add, o.device);
  add("resolution", o.resolution, "pixels of a side, to which pictures are resized; 0 takes the model's")
      ->check(not_negative);
  add("dtype", o.dtype,
      "how weights and activations are kept in memory: float32, or what LPO_TRAIN_DTYPES adds when it is built");
  add("checkpoints_total_limit", o.checkpoints_total_limit, "how many are kept; 0 is all")
      ->check(not_negative);
}

/// What of a policy is trained, and how its optimizer steps.
template <class Options>
void add_policy_training_options(const OptionList& add, Options& o) {
  add("rank", o.rank, "of the LoRA")->check(positive);
  add("lora_alpha", o.lora_alpha, "0 is the rank")->check(not_negative);
  add("lora_targets", o.lora_targets,
      "projections with an adapter, by the ends of their names, for example attn2.to_k,attn2.to_v");
  add.flag("full_finetuning", o.full_finetuning, "train the whole UNet instead of a LoRA; takes a second copy of it");
  add("train_batch_size", o.train_batch_size, "pairs of a forward and backward pass")->check(positive);
  add("gradient_accumulation_steps", o.gradient_accumulation_steps, "passes of an optimizer step")
      ->check(positive);
  add.flag("gradient_checkpointing", o.gradient_checkpointing,
           "compute activations again in backward: less memory, more time");
  add("learning_rate", o.learning_rate, "AdamW's")->check(positive);
  add("lr_warmup_steps", o.lr_warmup_steps, "optimizer steps")->check(not_negative);
  add_adamw_options(add, o.adam_beta1, o.adam_beta2, o.adam_epsilon, o.adam_weight_decay);
  add("loss_scale", o.loss_scale, "multiplies gradients on their way, for float16; a power of two")
      ->check(power_of_two);
  add("ema_decay", o.ema_decay, "above 0: average the trained weights, and draw and export with the averages")
      ->check(CLI::Range(0.0, 0.99999));
  add("max_skipped_steps", o.max_skipped_steps,
      "stop after so many steps in a row whose gradients are not finite; 0 is never")
      ->check(not_negative);
  add("validation_prompt", o.validation_prompts, "what to draw now and then; may be repeated")
      ->allow_extra_args(false);
  add("num_validation_images", o.validation_images, "of each, from seed, seed + 1, ...")->check(not_negative);
}

/// The filter of pairs by the scores of other models.
template <class Options>
void add_filter_options(const OptionList& add, Options& o) {
  add("score_file", o.score_file,
      "CSV with different_flag, aesthetic_gap, clipscore_gap and vqascore_gap of every pair: filter by it");
  add("mpcf_strategy", o.mpcf.strategy, "1: aesthetic gap > 0, 2: > -0.5, 3: > -1; 0 keeps all")
      ->check(CLI::Range(0, 3));
  add("mpcf_tie_abs", o.mpcf.tie_abs, "compare the size of the gaps of ties; false is LPO's official code");
  add("mpcf_inclusive", o.mpcf.inclusive, "gaps may equal their limits, as LPO's paper prints it");
}

/// Of the run and the optimizer of a reward model, whose trainer is LrmTrainer: `o.training` are its options.
template <class Options>
void add_reward_training_options(const OptionList& add, Options& o) {
  auto& t = o.training;
  add("train_data_dir", o.train_data,
      "pairs: a folder with pairs.jsonl, a folder of *.tar shards, the cache of an earlier run, or one such file")
      ->required();
  add("validation_data_dir", o.validation_data, "pairs to validate on, in any of these forms");
  add("num_validation_pairs", o.validation_pairs, "or hold out so many of the training pairs")
      ->check(not_negative);
  add("resolution", o.resolution, "pictures are resized to this square; 0 takes the model's")
      ->check(not_negative);
  add("cache_dir", o.cache_dir, "where encoded pictures are kept [OUTPUT_DIR/cache]");
  add("output_dir", o.output_dir, "where everything goes");
  add.flag("resume", t.resume, "go on from the newest checkpoint in the output folder");
  add.flag("dry_run", o.dry_run, "print the plan and stop");
  add("seed", t.seed, "of everything that is drawn");
  add("threads", o.threads, "0 takes all")->check(not_negative);
  add_device_options(add, o.device);
  add("max_train_steps", t.max_train_steps, "optimiser steps")->check(positive);
  add("train_batch_size", t.train_batch_size, "pairs of a step")->check(positive);
  add("learning_rate", t.learning_rate, "peak")->check(not_negative);
  add("lr_warmup_steps", t.lr_warmup_steps, "steps until the peak")->check(not_negative);
  add_adamw_options(add, t.optimizer.beta1, t.optimizer.beta2, t.optimizer.epsilon, t.optimizer.weight_decay);
  add("max_grad_norm", t.max_grad_norm, "0 turns clipping off")->check(not_negative);
  add("ema_decay", t.ema_decay, "> 0: validate and export a moving average of the weights")
      ->check(CLI::Range(0.0, 1.0));
  add("timestep_interval", t.timestep_interval, "training draws from 1, 1 + interval, ...")->check(positive);
  add("largest_timestep", t.largest_timestep, "up to this")->check(CLI::Range(1, 999));
  add.flag("gradient_checkpointing", t.gradient_checkpointing, "less memory for about a third more time");
  add("validation_steps", t.validation_steps, "validate every so many steps; 0 is at the end only")
      ->check(not_negative);
  add("validation_timestep", t.validation_timestep, "noise level of the validation that picks the best weights")
      ->check(CLI::Range(0, 999));
  add("validation_timesteps", o.validation_timesteps, "noise levels of the validation at the end [1,201,401,601,801]")
      ->allow_extra_args(false)
      ->delimiter(',');
  add("checkpointing_steps", t.checkpointing_steps, "checkpoint every so many steps; 0 is never")
      ->check(not_negative);
  add("checkpoints_total_limit", t.checkpoints_total_limit, "checkpoints that are kept; 0 is all")
      ->check(not_negative);
  add("max_skipped_steps", t.max_skipped_steps, "stop after so many steps in a row that are not finite; 0 is never")
      ->check(not_negative);
  add("save_dtype", o.save_dtype, "of the exported weights")->check(CLI::IsMember({"float32", "float16", "bfloat16"}));
}

}  // namespace examples
