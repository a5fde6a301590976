// SPDX-License-Identifier: MIT
// compare: one run of the comparison of methods on the tiny world, or what all runs need. tools/compare_methods starts
// many.
#include <string>

#include <CLI/CLI.hpp>

#include "../../common/console.hpp"
#include "../../common/option_list.hpp"
#include "../../common/reward_features.hpp"
#include "methods.hpp"
#include "prepare.hpp"

namespace {

/// Trains and measures; the method `base` trains nothing.
void run(const compare::Options& o) {
  demo::Options world = o.world;
  world.seed = o.seed;
  demo::Studio studio(world);
  const bool base = o.method == "base";
  const auto method = base ? nullptr : compare::method_of(o.method);
  compare::Recorder recorder(studio, o);
  if (method != nullptr) method(studio, o, recorder);
  if (examples::interrupted() != 0) throw lpo::CancelledError("[compare] stopped; " + o.out + " has what was measured");
  recorder.finish(!base);
}

}  // namespace

int main(int argc, char** argv) {
  compare::Options o;
  CLI::App app{"Compare ways to align a small diffusion model: one run, measured while it trains."};
  app.option_defaults()->always_capture_default();
  examples::add_version_option(app, "compare");
  app.require_subcommand(1);
  app.add_option("--model", o.world.model, "base model: a folder written by train_base");
  app.add_option("--data", o.data, "folder of pictures, pairs and reward models");
  app.add_option("--data-seed", o.world.seed, "seed of the data, the reward model and the measuring")->check(examples::seed_range);
  app.add_option("--threads", o.world.threads, "threads; 0 takes all")->check(examples::not_negative);
  app.add_option("--rated-captions", o.world.rated_captions,
                 "captions drawn by the base model for the raters, 4 pictures each")
      ->check(examples::positive);
  app.add_option("--held-out-captions", o.world.held_out_captions, "captions whose pairs measure the reward model")
      ->check(examples::positive);
  app.add_option("--reward-model", o.reward_model, "name of a reward model in the data folder");
  app.add_option("--lrm-steps", o.world.lrm_steps, "reward model steps")->check(examples::positive);
  app.add_option("--lrm-guidance", o.world.lrm_guidance, "visual feature enhancement g; 1 = off; of a run, as the reward model was trained");
  app.add_option("--mpcf-strategy", o.world.mpcf_strategy, "consistency filter: 0 (off), 1, 2 or 3")
      ->check(CLI::Range(0, 3));
  auto* const pairs = app.add_subcommand("pairs", "draw and rate the pictures")->fallthrough();
  auto* const reward = app.add_subcommand("reward-model", "train a latent reward model")->fallthrough();
  auto* const spm = app.add_subcommand("preference-model", "train SPO's preference model")->fallthrough();
  spm->add_option("--spm-steps", o.spm_steps, "its steps")->check(examples::positive);
  spm->add_option("--spm-learning-rate", o.spm_rate, "AdamW's");
  auto* const train = app.add_subcommand("run", "align the base model by one method, and measure it")->fallthrough();
  train->add_option("--method", o.method, "lpo, dpo, grpo, spo, or base, which trains nothing");
  train->add_option("--out", o.out, "the run's JSON file");
  train->add_option("--seed", o.seed, "seed of the training")->check(examples::seed_range);
  train->add_option("--cpu-seconds", o.cpu_seconds, "CPU time of the training, without measuring")
      ->check(examples::positive);
  train->add_flag("--tuning", o.tuning, "measure on validation captions");
  train->add_option("--learning-rate", o.learning_rate, "AdamW's");
  train->add_option("--beta", o.beta, "the method's: weight of the preference, or of the divergence (GRPO)");
  train->add_option("--train-batch-size", o.batch, "pairs or groups of an optimizer step")->check(examples::positive);
  train->add_option("--prompts", o.prompts, "prompts of a roll-out")->check(examples::positive);
  train->add_option("--rank", o.world.lora_rank, "LoRA rank")->check(CLI::Range(1, 32));
  train->add_option("--divert-start-step", o.divert_start_step, "LPO: steps before it are not compared");
  train->add_option("--divert-end-step", o.divert_end_step, "LPO: the roll-out ends before it; 0 is at the end");
  train
      ->add_option("--threshold", o.threshold,
                   "LPO: quantile fits a range to the reward model, range and constant are given")
      ->check(CLI::IsMember({"quantile", "range", "constant"}));
  train->add_option("--threshold-min", o.threshold_min, "LPO: at the least noise, or the constant");
  train->add_option("--threshold-max", o.threshold_max, "LPO: at the most noise");
  train->add_option("--captions", o.captions, "captions of the last measurement")->check(examples::positive);
  train->add_option("--pictures", o.pictures, "pictures per caption")->check(examples::positive);
  train->add_option("--curve-captions", o.curve_captions, "captions of the measurements while training; 0 is none")
      ->check(examples::not_negative);
  examples::expect_finite_numbers(app);
  CLI11_PARSE(app, argc, argv);
  return examples::run("compare", [&] {
    if (pairs->parsed()) compare::make_pairs(o);
    if (reward->parsed()) compare::make_reward_model(o);
    if (spm->parsed()) compare::make_preference_model(o);
    if (train->parsed()) {
      // Of a folder from before lrm_config.json the option's default was the training's.
      if ((o.method == "lpo" || o.method == "grpo") && lpo::read_reward_features(o.data + "/" + o.reward_model).stored) {
        lpo::RewardFeatureOptions features{.guidance = static_cast<float>(o.world.lrm_guidance)};
        examples::settle_reward_features(app, "compare", o.data + "/" + o.reward_model, features, true,
                                         {.guidance = "--lrm-guidance", .multi_scale = nullptr, .multi_scale_cfg = nullptr});
        o.world.lrm_guidance = lpo::detail::as_written(features.guidance);
      }
      run(o);
    }
  });
}
