// SPDX-License-Identifier: MIT
// Runs the stages one after the other and writes the report.
#include <sys/resource.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/folder_lock.hpp>

#include "../report.hpp"
#include "run.hpp"
#include "stages.hpp"

namespace demo {

namespace {

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

}  // namespace

void run_stages(const Options& o, const std::string& command) {
  lpo::make_directories(o.out);
  const lpo::FolderLock lock(o.out);
  tw::DemoReport report;
  report.seed = o.seed;
  report.command = command;
  report.lpo_version = LPO_VERSION_STRING;
#if defined(__CUDACC__)
  report.compiler = "nvcc " + std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__);
#elif defined(__clang__)
  report.compiler = "clang " __clang_version__;
#else
  report.compiler = "g++ " __VERSION__;
#endif
  Stopwatch watch;
  Studio studio(o);
  report.threads = studio.executor.threads();

  tw::RewardModel reward(o.model, studio.generator.tokenizer, static_cast<float>(o.lrm_guidance), o.seed + 1);
  {
    const auto train = rate_pairs(studio, o, tw::Split::train);
    const auto held_out = rate_pairs(studio, o, tw::Split::validation);
    watch.finish("rated pairs", report);
    train_reward_model(studio, o, reward, train, held_out, report);
    watch.finish("reward model", report);
  }
  align(studio, o, reward, report);
  watch.finish("LPO", report);
  evaluate_model(studio, o, report);
  watch.finish("evaluation", report);

  report.peak_rss_mb = peak_rss_mb();
  report.settings = {{"guidance_scale", o.guidance_scale},
                     {"rater_temperature", o.rater_temperature},
                     {"lrm_steps", static_cast<double>(o.lrm_steps)},
                     {"lrm_batch (captions)", static_cast<double>(o.lrm_batch)},
                     {"lrm_learning_rate", o.lrm_rate},
                     {"lrm_guidance", o.lrm_guidance},
                     {"lpo_iterations", static_cast<double>(o.iterations)},
                     {"prompts_per_iteration", static_cast<double>(o.prompts_per_iteration)},
                     {"train_batch (pairs)", static_cast<double>(o.train_batch)},
                     {"lora_rank", static_cast<double>(o.lora_rank)},
                     {"lpo_learning_rate", o.lpo_rate},
                     {"beta", o.beta},
                     {"threshold_quantile", o.threshold_quantile},
                     {"threshold_min", report.thresholds.empty() ? 0.0 : report.thresholds.back()},
                     {"threshold_max", report.thresholds.empty() ? 0.0 : report.thresholds.front()}};
  tw::write_report(o.out, report);
  tw::print_summary(report, o.out);
}

}  // namespace demo
