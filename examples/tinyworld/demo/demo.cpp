// SPDX-License-Identifier: MIT
// The demo: trains a latent reward model on simulated ratings, aligns the tiny world's generator with LPO, and measures it.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "../report.hpp"
#include "stages.hpp"

namespace tw = tinyworld;

namespace {

using demo::Options, demo::index_t;

double peak_rss_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

/// Seconds of each stage and the peak memory at its end.
class Stopwatch {
 public:
  void finish(const std::string& stage, tw::DemoReport& report) {
    const auto now = std::chrono::steady_clock::now();
    report.seconds.emplace_back(stage, std::chrono::duration<double>(now - last_).count());
    report.peak_rss_by_stage.emplace_back(stage, peak_rss_mb());
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

void program(const Options& o, const std::string& command) {
  lpo::make_directories(o.out);
  tw::DemoReport report;
  report.seed = o.seed;
  report.command = command;
  report.lpo_version = LPO_VERSION_STRING;
#if defined(__clang__)
  report.compiler = "clang " __clang_version__;
#else
  report.compiler = "g++ " __VERSION__;
#endif
  Stopwatch watch;
  demo::Studio studio(o);
  report.threads = studio.context.executor().threads();

  tw::RewardModel reward(o.model, studio.generator.tokenizer, static_cast<float>(o.lrm_guidance), o.seed + 1);
  {
    const auto train = demo::rate_pairs(studio, o, tw::Split::train);
    const auto held_out = demo::rate_pairs(studio, o, tw::Split::validation);
    watch.finish("rated pairs", report);
    demo::train_reward_model(studio, o, reward, train, held_out, report);
    watch.finish("reward model", report);
  }
  demo::align(studio, o, reward, report);
  watch.finish("LPO", report);
  demo::evaluate_model(studio, o, report);
  watch.finish("evaluation", report);

  report.peak_rss_mb = peak_rss_mb();
  report.settings = {{"guidance_scale", o.guidance_scale}, {"rater_temperature", o.rater_temperature},
                     {"lrm_steps", static_cast<double>(o.lrm_steps)},
                     {"lrm_batch (captions)", static_cast<double>(o.lrm_batch)}, {"lrm_learning_rate", o.lrm_rate},
                     {"lrm_guidance", o.lrm_guidance}, {"lpo_iterations", static_cast<double>(o.iterations)},
                     {"prompts_per_iteration", static_cast<double>(o.prompts_per_iteration)},
                     {"train_batch (pairs)", static_cast<double>(o.train_batch)}, {"lora_rank", static_cast<double>(o.lora_rank)},
                     {"lpo_learning_rate", o.lpo_rate}, {"beta", o.beta}, {"threshold_quantile", o.threshold_quantile},
                     {"threshold_min", report.thresholds.empty() ? 0.0 : report.thresholds.back()},
                     {"threshold_max", report.thresholds.empty() ? 0.0 : report.thresholds.front()}};
  tw::write_report(o.out, report);
  tw::print_summary(report, o.out);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"Align a small diffusion model with latent preference optimization, and show that it worked."};
  app.option_defaults()->always_capture_default();
  app.add_option("--model", o.model, "base model: a folder written by train_base");
  app.add_option("--out", o.out, "where the report is written");
  app.add_option("--seed", o.seed, "seed of everything");
  app.add_flag("--resume", o.resume, "continue an interrupted run in the same folder with the same options");
  app.add_option("--threads", o.threads, "threads; 0 takes all");
  app.add_option("--guidance-scale,--guidance_scale", o.guidance_scale, "classifier-free guidance");
  app.add_option("--rated-captions", o.rated_captions, "captions drawn by the base model for the raters, 4 pictures each")->check(CLI::PositiveNumber);
  app.add_option("--held-out-captions", o.held_out_captions, "captions whose pairs measure the reward model")->check(CLI::PositiveNumber);
  app.add_option("--rater-temperature", o.rater_temperature, "score difference that shifts a rater's log-odds by one")->check(CLI::PositiveNumber);
  app.add_option("--mpcf-strategy", o.mpcf_strategy, "consistency filter: 0 (off), 1, 2 or 3")->check(CLI::Range(0, 3));
  app.add_option("--lrm-steps", o.lrm_steps, "reward model steps")->check(CLI::PositiveNumber);
  app.add_option("--lrm-batch", o.lrm_batch, "captions per reward model step, up to six pairs each")->check(CLI::PositiveNumber);
  app.add_option("--lrm-learning-rate", o.lrm_rate, "reward model learning rate");
  app.add_option("--lrm-weight-decay", o.lrm_weight_decay, "reward model weight decay");
  app.add_option("--lrm-guidance", o.lrm_guidance, "visual feature enhancement g; 1 = off");
  app.add_option("--iterations", o.iterations, "LPO roll-outs")->check(CLI::PositiveNumber);
  app.add_option("--prompts", o.prompts_per_iteration, "prompts per roll-out")->check(CLI::PositiveNumber);
  app.add_option("--train-batch-size", o.train_batch, "pairs per LPO optimiser step")->check(CLI::PositiveNumber);
  app.add_option("--rank", o.lora_rank, "LoRA rank")->check(CLI::Range(1, 32));
  app.add_option("--learning-rate", o.lpo_rate, "LPO learning rate");
  app.add_option("--beta", o.beta, "LPO beta");
  app.add_option("--threshold-quantile", o.threshold_quantile, "share of the pairs that thresholds reject")->check(CLI::Range(0.01, 0.99));
  app.add_option("--captions", o.captions, "captions of the evaluation")->check(CLI::PositiveNumber);
  app.add_option("--seeds", o.seeds, "pictures per caption of the evaluation")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  std::string command = "demo";
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  return examples::run("demo", [&] { program(o, command); });
}
