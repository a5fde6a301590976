// SPDX-License-Identifier: MIT
// The demo: trains a latent reward model on simulated ratings, aligns the tiny world's generator with LPO, and measures
// it.
#include <string>

#include <CLI/CLI.hpp>

#include "../../common/console.hpp"
#include "../../common/option_list.hpp"
#include "run.hpp"

int main(int argc, char** argv) {
  demo::Options o;
  CLI::App app{"Align a small diffusion model with latent preference optimization, and show that it worked."};
  app.option_defaults()->always_capture_default();
  examples::add_version_option(app, "demo");
  app.add_option("--model", o.model, "base model: a folder written by train_base");
  app.add_option("--out", o.out, "where the report is written");
  app.add_option("--seed", o.seed, "seed of everything")->check(examples::seed_range);
  app.add_flag("--resume", o.resume, "continue an interrupted run in the same folder with the same options");
  app.add_option("--threads", o.threads, "threads; 0 takes all")->check(examples::not_negative);
  app.add_option("--guidance-scale,--guidance_scale", o.guidance_scale, "classifier-free guidance")
      ->check(examples::not_negative);
  app.add_option("--rated-captions", o.rated_captions, "captions drawn by the base model for the raters, 4 pictures each")->check(examples::positive);
  app.add_option("--held-out-captions", o.held_out_captions, "captions whose pairs measure the reward model")->check(examples::positive);
  app.add_option("--rater-temperature", o.rater_temperature, "score difference that shifts a rater's log-odds by one")->check(examples::positive);
  app.add_option("--mpcf-strategy", o.mpcf_strategy, "consistency filter: 0 (off), 1, 2 or 3")->check(CLI::Range(0, 3));
  app.add_option("--lrm-steps", o.lrm_steps, "reward model steps")->check(examples::positive);
  app.add_option("--lrm-batch", o.lrm_batch, "captions per reward model step, up to six pairs each")->check(examples::positive);
  app.add_option("--lrm-learning-rate", o.lrm_rate, "reward model learning rate");
  app.add_option("--lrm-weight-decay", o.lrm_weight_decay, "reward model weight decay");
  app.add_option("--lrm-guidance", o.lrm_guidance, "visual feature enhancement g; 1 = off");
  app.add_option("--iterations", o.iterations, "LPO roll-outs")->check(examples::positive);
  app.add_option("--prompts", o.prompts_per_iteration, "prompts per roll-out")->check(examples::positive);
  app.add_option("--train-batch-size", o.train_batch, "pairs per LPO optimiser step")->check(examples::positive);
  app.add_option("--rank", o.lora_rank, "LoRA rank")->check(CLI::Range(1, 32));
  app.add_option("--learning-rate", o.lpo_rate, "LPO learning rate");
  app.add_option("--beta", o.beta, "LPO beta");
  app.add_option("--threshold-quantile", o.threshold_quantile, "share of the pairs that thresholds reject")->check(CLI::Range(0.01, 0.99));
  app.add_option("--captions", o.captions, "captions of the evaluation")->check(examples::positive);
  app.add_option("--seeds", o.seeds, "pictures per caption of the evaluation")->check(examples::positive);
  examples::expect_finite_numbers(app);
  CLI11_PARSE(app, argc, argv);
  std::string command = "demo";
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  return examples::run("demo", [&] { demo::run_stages(o, command); });
}
