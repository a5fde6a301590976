// SPDX-License-Identifier: MIT
// GrpoTrainer: ratios of 1 in the first step, all candidates trained, the policy's reward rises, exact resume, what is
// refused, and scores that are not numbers.
#include <doctest/doctest.h>

#include <cmath>

#include <lpo/train/grpo_trainer.hpp>

#include "small_world.hpp"

using namespace lpo;
using namespace small_world;

namespace {

GrpoTrainerOptions grpo_options(const std::string& folder) {
  GrpoTrainerOptions o;
  static_cast<RolloutTrainerOptions&>(o) = lpo_options(folder);
  return o;
}

RolloutTrainerReport run(Policy& policy, const GrpoTrainerOptions& options, const ProgressCallback& progress = {},
                         int threads = 2) {
  Context<Cpu> context(threads);
  Reward reward;
  const NoiseSchedule schedule;
  GrpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, reward.lrm, reward.encoder, schedule,
                      Extents<3>{4, 4, 4}, options);
  return trainer.train(prompts(), progress);
}

}  // namespace

TEST_CASE("the first step has ratio 1, no divergence, and minus the mean advantage as its loss") {
  TemporaryFolder folder;
  Policy policy;
  auto options = grpo_options(folder.path());
  options.max_train_iterations = 1;
  options.train_batch_size = 1000;
  const auto report = run(policy, options);
  CHECK(report.optimizer_steps == 1);
  CHECK(report.pairs == 15);  // five steps of three prompts
  CHECK(report.kept_per_step == std::vector<double>(5, 3.0));
  const auto line = read_metrics(folder.path() + "/metrics.jsonl").front();
  CHECK(line["train_ratio"].get<double>() == doctest::Approx(1.0).epsilon(1e-6));
  CHECK(line["ratio_clipped"].get<double>() == 0.0);
  CHECK(line["kl"].get<double>() == 0.0);
  CHECK(std::fabs(line["train_loss"].get<double>()) < 1e-5);  // advantages have mean 0
  CHECK(line["grad_norm"].get<double>() > 0.0);
  CHECK(line["kept"] == 15.0);
}

TEST_CASE("micro-batches add up to the gradient of the whole batch") {
  TemporaryFolder whole_folder, parts_folder;
  auto options = grpo_options(whole_folder.path());
  options.max_train_iterations = 1;
  options.train_batch_size = 1000;
  Policy whole, parts;
  run(whole, options);
  options.output_dir = parts_folder.path();
  options.micro_batch_size = 4;
  run(parts, options);
  const auto one = read_metrics(whole_folder.path() + "/metrics.jsonl").front(),
             many = read_metrics(parts_folder.path() + "/metrics.jsonl").front();
  CHECK(many["grad_norm"].get<double>() == doctest::Approx(one["grad_norm"].get<double>()).epsilon(1e-4));
}

TEST_CASE("training gains: candidates above the mean become likelier") {
  TemporaryFolder folder;
  Policy policy;
  auto options = grpo_options(folder.path());
  options.max_train_iterations = 8;
  options.learning_rate = 3e-3;
  run(policy, options);
  double gain = 0, divergence = 0;
  for (const auto& line : read_metrics(folder.path() + "/metrics.jsonl")) {
    gain += line["train_gain"].get<double>();
    divergence += line["kl"].get<double>();
  }
  CHECK(gain > 0);
  CHECK(divergence > 0);
}

TEST_CASE("a resumed run and another number of threads give the same bits") {
  TemporaryFolder whole_folder, cut_folder;
  Policy whole, cut, resumed, single;
  run(whole, grpo_options(whole_folder.path()));
  CHECK_THROWS_AS(run(cut, grpo_options(cut_folder.path()), [](const Progress& p) { return p.step < 3; }),
                  CancelledError);
  auto options = grpo_options(cut_folder.path());
  options.resume = true;
  run(resumed, options);
  run(single, grpo_options(""), {}, 1);
  CHECK(weights(resumed.store) == weights(whole.store));
  CHECK(weights(single.store) == weights(whole.store));
  CHECK(read_text_file(cut_folder.path() + "/metrics.jsonl") == read_text_file(whole_folder.path() + "/metrics.jsonl"));

  // Not a run of another method or with other numbers.
  Policy other;
  options.loss.beta = 0.5;
  CHECK_THROWS_WITH_AS(run(other, options), doctest::Contains("beta: saved 0.1"), FileError);
  CHECK(read_text_file(cut_folder.path() + "/latest/trainer_state.json").find("\"grpo\"") != std::string::npos);
}

TEST_CASE("settings that cannot work are refused") {
  Policy policy;
  auto options = grpo_options("");
  options.rollout.candidates = 1;
  CHECK_THROWS_WITH_AS(run(policy, options), doctest::Contains("a group has at least 2"), ValueError);
  options.rollout.candidates = 4;
  options.loss.clip = 0;
  CHECK_THROWS_WITH_AS(run(policy, options), doctest::Contains("clip above 0"), ValueError);
}
