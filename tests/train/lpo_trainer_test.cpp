// SPDX-License-Identifier: MIT
// LpoTrainer: first loss ln 2 with Delta exactly 0, exact resume after a kill, thread independence, cancelling.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "killed.hpp"
#include "small_world.hpp"

using namespace lpo;
using namespace small_world;

namespace {
template <class T>
LpoTrainerReport run(PolicyIn<T>& policy, const LpoTrainerOptions& options, const ProgressCallback& progress = {},
                     int threads = 2) {
  Context<Cpu> context(threads);
  RewardIn<T> reward;
  const NoiseSchedule schedule;
  LpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, reward.lrm, reward.encoder, schedule, Extents<3>{4, 4, 4}, options);
  return trainer.train(prompts(), progress);
}

std::vector<nlohmann::json> log_lines(const std::string& folder) { return read_metrics(folder + "/metrics.jsonl"); }
}  // namespace

TEST_CASE("property (a): with LoRA B = 0 the first loss is ln 2 and both ratios are exactly 1") {
  TemporaryFolder folder;
  Policy policy;
  auto options = lpo_options(folder.path());
  options.max_train_iterations = 1;
  options.train_batch_size = 1000;  // one optimiser step: every pair sees the starting weights
  const auto report = run(policy, options);
  CHECK(report.optimizer_steps == 1);
  CHECK(report.pairs > 0);
  const auto line = log_lines(folder.path()).front();
  CHECK(line["train_loss"].get<double>() == doctest::Approx(std::log(2.0)).epsilon(1e-12));
  CHECK(line["train_ratio_win"].get<double>() == 1.0);
  CHECK(line["train_ratio_lose"].get<double>() == 1.0);
  CHECK(line["implicit_acc"].get<double>() == 0.0);
  CHECK(line["grad_norm"].get<double>() > 0.0);
}

TEST_CASE("micro-batches add up to the gradient of the whole batch") {
  TemporaryFolder whole_folder, parts_folder;
  auto options = lpo_options(whole_folder.path());
  options.max_train_iterations = 1;
  options.train_batch_size = 1000;
  Policy whole, parts;
  run(whole, options);
  options.output_dir = parts_folder.path();
  options.micro_batch_size = 4;  // does not divide the number of pairs
  const auto report = run(parts, options);
  CHECK(report.optimizer_steps == 1);
  CHECK(report.pairs % 4 != 0);
  const auto one = log_lines(whole_folder.path()).front(), many = log_lines(parts_folder.path()).front();
  CHECK(many["train_loss"].get<double>() == doctest::Approx(one["train_loss"].get<double>()).epsilon(1e-12));
  CHECK(many["grad_norm"].get<double>() == doctest::Approx(one["grad_norm"].get<double>()).epsilon(1e-5));
}

TEST_CASE("training moves the ratios the right way") {
  TemporaryFolder folder;
  Policy policy;
  auto options = lpo_options(folder.path());
  options.max_train_iterations = 12;
  options.learning_rate = 3e-3;
  run(policy, options);
  double margin = 0;
  const auto lines = log_lines(folder.path());
  for (std::size_t i = lines.size() / 2; i < lines.size(); ++i) margin += lines[i]["train_margin"].get<double>();
  CHECK(margin > 0);
}

TEST_CASE("killed and resumed equals uninterrupted, byte for byte") {
  TemporaryFolder whole_folder, cut_folder;
  Policy whole;
  const auto whole_report = run(whole, lpo_options(whole_folder.path()));
  run_and_kill([&](auto&& die) {
    Policy cut;
    run(cut, lpo_options(cut_folder.path()), [&](const Progress& p) {
      if (p.step == 3) die();
      return true;
    });
  });
  Policy resumed;
  auto options = lpo_options(cut_folder.path());
  options.resume = true;
  const auto report = run(resumed, options);
  CHECK(weights(resumed.store) == weights(whole.store));
  CHECK(report.pairs == whole_report.pairs);
  CHECK(report.kept_per_step == whole_report.kept_per_step);
  CHECK(read_text_file(cut_folder.path() + "/metrics.jsonl") == read_text_file(whole_folder.path() + "/metrics.jsonl"));
}

TEST_CASE("calibrated thresholds are the same in a resumed run and reject about the asked share") {
  TemporaryFolder whole_folder, cut_folder;
  auto options = lpo_options(whole_folder.path());
  options.threshold_quantile = 0.5;
  options.calibration_rollouts = 4;
  Policy whole;
  const auto report = run(whole, options);
  CHECK(report.thresholds.front() > 0);
  double kept = 0, drawn = 0;
  for (std::size_t i = 0; i < report.kept_per_step.size(); ++i) kept += report.kept_per_step[i], drawn += report.drawn_per_step[i];
  CHECK(kept / drawn > 0.25);
  CHECK(kept / drawn < 0.75);
  options.output_dir = cut_folder.path();
  Policy cut;
  CHECK_THROWS_AS(run(cut, options, [](const Progress& p) { return p.step < 2; }), CancelledError);
  Policy resumed;
  options.resume = true;
  CHECK(run(resumed, options).thresholds == report.thresholds);
  CHECK(weights(resumed.store) == weights(whole.store));
}

TEST_CASE("the number of threads does not change a bit") {
  Policy one, three;
  run(one, lpo_options(""), {}, 1);
  run(three, lpo_options(""), {}, 3);
  CHECK(weights(one.store) == weights(three.store));
}

TEST_CASE_TEMPLATE("a resumed run of a 16-bit network has the bits of an uninterrupted one", T, bfloat16, half) {
  TemporaryFolder whole_folder, cut_folder;
  auto options = lpo_options(whole_folder.path());
  options.loss_scale = 1024;
  PolicyIn<T> whole;
  run(whole, options);
  CHECK(log_lines(whole_folder.path()).front()["grad_norm"].get<double>() > 0.0);
  options.output_dir = cut_folder.path();
  PolicyIn<T> cut;
  CHECK_THROWS_AS(run(cut, options, [](const Progress& p) { return p.step < 3; }), CancelledError);
  PolicyIn<T> resumed;
  options.resume = true;
  run(resumed, options);
  const auto a = weights(whole.store), b = weights(resumed.store);
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
  CHECK(read_text_file(cut_folder.path() + "/metrics.jsonl") == read_text_file(whole_folder.path() + "/metrics.jsonl"));
}

TEST_CASE_TEMPLATE("16-bit networks: the first loss is ln 2, and gradients are as large as float's", T, bfloat16,
                   half) {
  TemporaryFolder wide_folder, narrow_folder;
  auto options = lpo_options(wide_folder.path());
  options.max_train_iterations = 1;
  options.train_batch_size = 1000;
  Policy wide;
  run(wide, options);
  options.output_dir = narrow_folder.path();
  options.loss_scale = 64;
  PolicyIn<T> narrow;
  run(narrow, options);
  const auto reference = log_lines(wide_folder.path()).front(), rounded = log_lines(narrow_folder.path()).front();
  CHECK(rounded["train_ratio_win"].get<double>() == 1.0);  // policy and reference round alike
  CHECK(rounded["train_loss"].get<double>() == doctest::Approx(std::log(2.0)).epsilon(1e-12));
  const double ratio = rounded["grad_norm"].get<double>() / reference["grad_norm"].get<double>();
  CHECK(ratio > 0.2);  // near scores may order otherwise when they are rounded, so the pairs differ
  CHECK(ratio < 5.0);
}

TEST_CASE("updates below the spacing of bfloat16 add up in the masters, and checkpoints hold them") {
  TemporaryFolder folder;
  auto options = lpo_options(folder.path());
  options.learning_rate =
      1e-5;  // a step of Adam moves a weight by about as much; bfloat16 numbers near 0.5 lie 2e-3 apart
  options.checkpointing_iterations = options.max_train_iterations;
  PolicyIn<bfloat16> policy;
  const auto before = weights(policy.store);
  run(policy, options);
  const auto after = weights(policy.store);
  const auto masters = SafetensorsFile(folder.path() + "/checkpoint-5/state.safetensors").read_vector<float>("weights");
  index_t hidden = 0;
  for (std::size_t i = 0; i < after.size(); ++i) {
    CHECK(static_cast<bfloat16>(masters[i]).bits == after[i].bits);
    if (after[i].bits == before[i].bits && masters[i] != static_cast<float>(after[i])) ++hidden;
  }
  CHECK(hidden > 100);
}

TEST_CASE("the parts of an iteration are announced in their order") {
  Policy policy;
  auto options = lpo_options("");
  options.max_train_iterations = 1;
  options.sample_steps = 2;
  options.train_batch_size = 1000;
  std::vector<LpoStage> stages;
  options.on_stage = [&](LpoStage stage) { stages.push_back(stage); };
  run(policy, options);
  CHECK(stages == std::vector{LpoStage::text, LpoStage::denoising, LpoStage::scoring, LpoStage::denoising,
                              LpoStage::scoring, LpoStage::reference, LpoStage::policy, LpoStage::optimizer});
}

TEST_CASE("base weights stay as they were") {
  Policy before, after;
  run(after, lpo_options(""));
  for (std::size_t i = 0; i < before.store.entries().size(); ++i) {
    const auto& a = *before.store.entries()[i].parameter;
    const auto& b = *after.store.entries()[i].parameter;
    if (a.trainable()) continue;
    CHECK(std::equal(a.data(), a.data() + a.size(), b.data()));
  }
}

TEST_CASE("a policy without trainable weights is refused") {
  Policy policy;
  Store frozen;
  frozen.add("unet", policy.unet);
  frozen.allocate_frozen();
  Context<Cpu> context(1);
  Reward reward;
  const NoiseSchedule schedule;
  CHECK_THROWS_WITH_AS(LpoTrainer(context, policy.unet, frozen, policy.encoder, reward.lrm, reward.encoder, schedule, Extents<3>{4, 4, 4},
                                  lpo_options("")),
                       doctest::Contains("enable_lora"), ValueError);
}
