// SPDX-License-Identifier: MIT
// LpoTrainer: first loss ln 2 with Delta exactly 0, exact resume after a kill, thread independence, cancelling,
// averages, gradient checkpointing, and steps without finite gradients.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include <common/memory_plan.hpp>

#include <lpo/nn/keep_packed.hpp>

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

namespace {
/// Moves the LoRA away from where it starts, so that ratios are not 1.
template <class T>
void disturb(PolicyIn<T>& policy) {
  for (index_t i = 0; i < policy.store.trainable_size(); ++i)
    policy.store.trainable_values()[i] = static_cast<T>(0.3f * std::sin(static_cast<float>(i)));
}
}  // namespace

TEST_CASE("without dedup_forward win and lose have passes of their own: the same numbers, in twice the memory") {
  nlohmann::json lines[2];
  std::size_t peaks[2] = {};
  for (const bool once : {true, false}) {
    TemporaryFolder folder;
    Policy policy;
    disturb(policy);
    auto options = lpo_options(folder.path());
    options.max_train_iterations = 1;
    options.train_batch_size = 1000;
    options.dedup_forward = once;
    Context<Cpu> context(2);
    Reward reward;
    const NoiseSchedule schedule;
    LpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, reward.lrm, reward.encoder, schedule,
                       Extents<3>{4, 4, 4}, options);
    CHECK(trainer.train(prompts()).optimizer_steps == 1);
    lines[once] = log_lines(folder.path()).front();
    peaks[once] = context.activations().peak_bytes();
    if (once) continue;
    options.resume = true;
    options.dedup_forward = true;
    Policy other;
    CHECK_THROWS_WITH_AS(run(other, options), doctest::Contains("dedup_forward: saved false, now nothing"), FileError);
  }
  CHECK(lines[0]["kept"] == lines[1]["kept"]);
  CHECK(std::fabs(lines[1]["train_ratio_win"].get<double>() - 1) > 1e-4);
  for (const char* name : {"train_loss", "train_ratio_win", "train_ratio_lose", "train_margin", "grad_norm", "ref_density_win",
                           "policy_density_lose"})
    CHECK_MESSAGE(lines[0][name].get<double>() == doctest::Approx(lines[1][name].get<double>()).epsilon(2e-5), name);
  CHECK(static_cast<double>(peaks[0]) > 1.8 * static_cast<double>(peaks[1]));
}

TEST_CASE_TEMPLATE("a reference in half begins near the policy, not at it", T, float, half) {
  TemporaryFolder folder;
  PolicyIn<T> policy;
  auto options = lpo_options(folder.path());
  options.max_train_iterations = 1;
  options.train_batch_size = 1000;
  options.half_reference = true;
  run(policy, options);
  const auto line = log_lines(folder.path()).front();
  for (const char* name : {"train_ratio_win", "train_ratio_lose"}) {
    const double distance = std::fabs(line[name].get<double>() - 1);
    CHECK(distance > 0);
    CHECK(distance < 1e-3);
  }
  CHECK(line["train_loss"].get<double>() != std::log(2.0));
  CHECK(line["train_loss"].get<double>() == doctest::Approx(std::log(2.0)).epsilon(0.1));
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

TEST_CASE("a run goes on with its own settings only: AdamW's, the loss's, and what its program adds") {
  TemporaryFolder folder;
  auto options = lpo_options(folder.path());
  options.more_settings["lora_alpha"] = "4";
  Policy begun;
  CHECK_THROWS_AS(run(begun, options, [](const Progress& p) { return p.step < 1; }), CancelledError);
  options.resume = true;
  const auto refused = [&](const char* difference, const auto& change) {
    auto changed = options;
    change(changed);
    Policy other;
    CHECK_THROWS_WITH_AS(run(other, changed), doctest::Contains(difference), FileError);
  };
  refused("adam_betas: saved [0.9,0.999], now [0.8,0.999]", [](auto& o) { o.optimizer.beta1 = 0.8; });
  refused("adam_betas: saved [0.9,0.999], now [0.9,0.99]", [](auto& o) { o.optimizer.beta2 = 0.99; });
  refused("adam_epsilon", [](auto& o) { o.optimizer.epsilon = 1e-6; });
  refused("weight_decay", [](auto& o) { o.optimizer.weight_decay = 0.5; });
  refused("stable_logsigmoid", [](auto& o) { o.loss.stable_logsigmoid = !o.loss.stable_logsigmoid; });
  refused("lora_alpha: saved \"4\", now \"8\"", [](auto& o) { o.more_settings["lora_alpha"] = "8"; });
  refused("lora_alpha: saved \"4\", now nothing", [](auto& o) { o.more_settings.clear(); });
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
  std::vector<index_t> begun_at;  // once the checkpoint is restored
  int prepared = 0;
  const auto watch = [&](const Progress& p) {
    if (p.preparing)
      ++prepared;
    else
      begun_at.push_back(p.first_step);
    return true;
  };
  CHECK(run(resumed, options, watch).thresholds == report.thresholds);
  CHECK(weights(resumed.store) == weights(whole.store));
  CHECK(prepared > 0);
  CHECK(begun_at == std::vector<index_t>(begun_at.size(), 2));
}

TEST_CASE("the number of threads does not change a bit") {
  Policy one, three;
  run(one, lpo_options(""), {}, 1);
  run(three, lpo_options(""), {}, 3);
  CHECK(weights(one.store) == weights(three.store));
}

TEST_CASE_TEMPLATE("frozen weights that stay packed do not change a bit", T, float, bfloat16) {
  PolicyIn<T> plain, packed;
  run(plain, lpo_options(""));
  const NoiseSchedule schedule;
  RewardIn<T> reward;
  Context<Cpu> context(2);
  {
    const KeepPacked<T, Cpu> policy_packed(context, packed.store), reward_packed(context, reward.store);
    LpoTrainer trainer(context, packed.unet, packed.store, packed.encoder, reward.lrm, reward.encoder, schedule,
                       Extents<3>{4, 4, 4}, lpo_options(""));
    trainer.train(prompts());
    CHECK(context.packed_weights().reserved_bytes() > 0);
  }
  CHECK(context.packed_weights().reserved_bytes() == 0);
  const auto a = weights(plain.store), b = weights(packed.store);
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
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

namespace {
/// Full fine-tuning: everything of the UNet trains, a copy is the reference.
struct Whole {
  UNet unet, reference;
  Text text;
  Store store, reference_store;
  Encoder encoder{text, {19, 19, 19, 19, 19, 19}};

  Whole() {
    store.add("unet", unet);
    store.add("text_encoder", text);
    store.allocate([](const std::string& name) { return name.starts_with("unet."); });
    store.initialize(4);
    reference_store.add("unet", reference);
    reference_store.allocate_frozen();
    reference_store.initialize(4);
  }

  LpoTrainerReport run(const LpoTrainerOptions& options, const ProgressCallback& progress = {}) {
    Context<Cpu> context(2);
    Reward reward;
    const NoiseSchedule schedule;
    LpoTrainer trainer(context, unet, store, encoder, reward.lrm, reward.encoder, schedule, Extents<3>{4, 4, 4},
                       options);
    trainer.set_reference(reference);
    return trainer.train(prompts(), progress);
  }
};
}  // namespace

TEST_CASE_TEMPLATE("stopped while an iteration trains: it is dropped, its optimiser steps too, and resumed as if it had not begun", T,
                   float, bfloat16) {
  TemporaryFolder whole_folder;
  PolicyIn<T> whole;
  auto options = lpo_options(whole_folder.path());
  options.micro_batch_size = 2;
  options.ema_decay = 0.9;
  run(whole, options);
  for (const int stop_at : {1, 5}) {  // before and after the first optimiser step of the iteration
    CAPTURE(stop_at);
    TemporaryFolder folder;
    PolicyIn<T> cut, resumed;
    options.output_dir = folder.path();
    options.resume = false;
    std::vector<T> before;
    bool moved = false;
    const auto same = [](const std::vector<T>& a, const std::vector<T>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
    };
    int asked = 0;
    CHECK_THROWS_WITH_AS(run(cut, options,
                             [&](const Progress& p) {
                               if (p.step == 3 && !p.within_step) before = weights(cut.store);
                               if (p.step != 3 || !p.within_step || ++asked < stop_at) return true;
                               moved = !same(weights(cut.store), before);
                               return false;
                             }),
                         "[LpoTrainer] cancelled after iteration 3 of 5; the iteration that was begun is dropped",
                         CancelledError);
    CHECK(asked == stop_at);
    CHECK(moved == (stop_at == 5));
    CHECK(same(weights(cut.store), before));
    CHECK(CheckpointFolder(folder.path(), 0).steps().back() == 3);
    options.resume = true;
    run(resumed, options);
    CHECK(same(weights(resumed.store), weights(whole.store)));
    CHECK(read_text_file(folder.path() + "/metrics.jsonl") == read_text_file(whole_folder.path() + "/metrics.jsonl"));
  }
}

TEST_CASE("a policy that trains whole can drop an iteration until its first optimiser step, and finishes it after that") {
  TemporaryFolder folder;
  auto options = lpo_options(folder.path());
  options.micro_batch_size = 2;
  options.max_train_iterations = 3;
  Whole all, cut, resumed;
  int asked = 0;
  all.run(options, [&](const Progress& p) { return asked += p.within_step, true; });
  CHECK(asked == 3);  // between the two micro-batches of the first of several batches
  TemporaryFolder cut_folder;
  options.output_dir = cut_folder.path();
  CHECK_THROWS_AS(cut.run(options, [&](const Progress& p) { return p.step < 1 || !p.within_step; }), CancelledError);
  CHECK(CheckpointFolder(cut_folder.path(), 0).steps() == std::vector<index_t>{1});
  options.resume = true;
  resumed.run(options);
  CHECK(weights(resumed.store) == weights(all.store));
}

TEST_CASE("full fine-tuning starts where the reference is, and moves away from it") {
  TemporaryFolder folder;
  Whole whole;
  const auto before = weights(whole.store);
  auto options = lpo_options(folder.path());
  options.max_train_iterations = 2;
  options.train_batch_size = 1000;
  whole.run(options);
  const auto lines = log_lines(folder.path());
  CHECK(lines.front()["train_ratio_win"].get<double>() == 1.0);
  CHECK(lines.back()["train_ratio_win"].get<double>() != 1.0);
  CHECK(weights(whole.store) != before);
}

TEST_CASE(
    "the average of one step is decay times the start and the rest the step; resumed averages are the same bits") {
  Policy one;
  const auto start = weights(one.store);
  auto options = lpo_options("");
  options.max_train_iterations = 1;
  options.train_batch_size = 1000;
  options.ema_decay = 0.75;
  Context<Cpu> context(2);
  Reward reward;
  const NoiseSchedule schedule;
  {
    LpoTrainer trainer(context, one.unet, one.store, one.encoder, reward.lrm, reward.encoder, schedule,
                       Extents<3>{4, 4, 4}, options);
    trainer.train(prompts());
    REQUIRE(trainer.ema() != nullptr);
    const auto end = weights(one.store);
    const auto average = trainer.ema()->average();
    for (index_t i = 0; i < average.size(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      CHECK(average.data[i] == doctest::Approx(0.75f * start[at] + 0.25f * end[at]).epsilon(1e-5));
    }
    trainer.ema()->swap();
    CHECK(weights(one.store) != end);
    trainer.ema()->swap();
    CHECK(weights(one.store) == end);
  }
  TemporaryFolder whole_folder, cut_folder;
  const auto averages = [&](const std::string& folder, bool resume, const ProgressCallback& progress) {
    Policy policy;
    auto o = lpo_options(folder);
    o.ema_decay = 0.9;
    o.resume = resume;
    LpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, reward.lrm, reward.encoder, schedule,
                       Extents<3>{4, 4, 4}, o);
    try {
      trainer.train(prompts(), progress);
    } catch (const CancelledError&) {
    }
    const auto view = trainer.ema()->average();
    return std::vector<float>(view.data, view.data + view.size());
  };
  const auto expected = averages(whole_folder.path(), false, {});
  averages(cut_folder.path(), false, [](const Progress& p) { return p.step < 3; });
  CHECK(averages(cut_folder.path(), true, {}) == expected);
}

TEST_CASE("gradient checkpointing computes the same gradients in less memory") {
  std::vector<float> results[2];
  std::size_t peaks[2] = {};
  for (const bool on : {false, true}) {
    Policy policy;
    auto options = lpo_options("");
    options.max_train_iterations = 2;
    options.gradient_checkpointing = on;
    Context<Cpu> context(2);
    Reward reward;
    const NoiseSchedule schedule;
    LpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, reward.lrm, reward.encoder, schedule,
                       Extents<3>{4, 4, 4}, options);
    trainer.train(prompts());
    results[on] = weights(policy.store);
    peaks[on] = context.activations().peak_bytes();
  }
  CHECK(peaks[1] < peaks[0]);
  // What programs foresee, for 4 pairs under guidance.
  const auto work = examples::unet_work(unet_config, 4, 4, 6);
  CHECK(static_cast<double>(peaks[0]) == doctest::Approx(8 * sizeof(float) * work.kept).epsilon(0.2));
  CHECK(static_cast<double>(peaks[1]) ==
        doctest::Approx(8 * sizeof(float) * (work.kept_by_layers + 2 * work.widest_layer)).epsilon(0.2));
  // AdamW's first steps are about as large as the rate, whatever the gradient: compare the distance with that.
  double worst = 0;
  for (std::size_t i = 0; i < results[0].size(); ++i)
    worst = std::max(worst, std::fabs(static_cast<double>(results[0][i]) - static_cast<double>(results[1][i])));
  CHECK(worst < 1e-4);
  MESSAGE("peak of activations ", peaks[0], " bytes, with checkpointing ", peaks[1], "; weights differ by ", worst);
}

TEST_CASE("stopped in the middle of a roll-out: saved, and resumed as if nothing had been") {
  TemporaryFolder whole_folder, cut_folder;
  Policy whole, cut, resumed;
  run(whole, lpo_options(whole_folder.path()));
  int calls = 0;
  CHECK_THROWS_AS(
      run(cut, lpo_options(cut_folder.path()), [&](const Progress& p) { return p.step < 3 || ++calls < 3; }),
      CancelledError);
  CHECK(CheckpointFolder(cut_folder.path(), 0).steps().back() == 3);  // although every second iteration is saved
  auto options = lpo_options(cut_folder.path());
  options.resume = true;
  run(resumed, options);
  CHECK(weights(resumed.store) == weights(whole.store));
  CHECK(read_text_file(cut_folder.path() + "/metrics.jsonl") == read_text_file(whole_folder.path() + "/metrics.jsonl"));
}

TEST_CASE("steps without finite gradients are left out and counted") {
  TemporaryFolder folder;
  Whole whole;
  auto& poisoned = whole.reference.conv_out.bias.data()[0];
  const float healthy = poisoned;
  auto options = lpo_options(folder.path());
  options.max_skipped_steps = 1000;
  std::vector<float> kept;
  const auto report = whole.run(options, [&](const Progress& p) {
    poisoned = p.step == 2 ? std::nanf("") : healthy;  // through the third iteration
    if (p.step == 2) kept = weights(whole.store);
    if (p.step == 3 && !kept.empty()) {
      CHECK(weights(whole.store) == kept);
      kept.clear();
    }
    return true;
  });
  CHECK(report.iterations == 5);
  CHECK(report.skipped_steps > 0);
  const auto lines = log_lines(folder.path());
  CHECK(lines[2]["train_loss"].is_null());
  CHECK(lines[2]["skipped_steps"].get<double>() == static_cast<double>(report.skipped_steps));
  CHECK(lines[4]["train_loss"].is_number());
  for (const float value : weights(whole.store)) REQUIRE(std::isfinite(value));
}

TEST_CASE("too many such steps in a row end training with the last good weights and a report of where it began") {
  TemporaryFolder folder;
  Whole whole;
  auto& poisoned = whole.reference.conv_out.bias.data()[0];
  auto options = lpo_options(folder.path());
  options.max_train_iterations = 50;
  options.checkpointing_iterations = 1;
  options.max_skipped_steps = 9;  // more than an iteration has
  std::vector<float> good;
  std::string text;
  try {
    whole.run(options, [&](const Progress& p) {
      if (p.step == 2 && good.empty()) poisoned = std::nanf(""), good = weights(whole.store);
      return true;
    });
  } catch (const ValueError& error) {
    text = error.what();
  }
  CHECK(text.find("not finite in 9 steps in a row, beginning in iteration 2 after ") != std::string::npos);
  CHECK(text.find("the last good weights are in " + folder.path() + "/checkpoint-2; lower learning_rate") !=
        std::string::npos);
  CHECK(weights(whole.store) == good);
  const auto json = nlohmann::json::parse(read_text_file(folder.path() + "/not_finite.json"));
  CHECK(json["first_iteration"] == 2);
  CHECK(json["steps_in_a_row"] == 9);
  CHECK(json["weights_with_bad_gradients"].size() > 10);
  CHECK(CheckpointFolder(folder.path(), 0).steps().back() == 2);  // none from the bad time
  Whole again;
  options.resume = true;
  options.max_train_iterations = 3;
  CHECK(again.run(options).iterations == 3);  // and it goes on from there
}

TEST_CASE("a log line has the method's names") {
  TemporaryFolder folder;
  Policy policy;
  auto options = lpo_options(folder.path());
  std::vector<std::string> files;
  options.checkpoint_files = [&](const std::string& into) {
    write_text_file(into + "/extra", "x");
    files.push_back(into);
  };
  index_t lines_seen = 0;
  options.on_metrics = [&](index_t iteration, const MetricValues& values) {
    CHECK(iteration == lines_seen++);
    CHECK(values.front().first == "epoch");
  };
  run(policy, options);
  CHECK(lines_seen == 5);
  const auto line = log_lines(folder.path()).back();
  for (const char* name :
       {"epoch", "reward_mean", "reward_std", "kept", "kept_t_small", "train_loss", "train_ratio_win",
        "train_ratio_lose", "implicit_acc", "train_margin", "policy_density_win", "policy_density_lose",
        "ref_density_win", "ref_density_lose", "grad_norm", "lr", "global_step", "skipped_steps"})
    CHECK_MESSAGE(line.contains(name), name);
  CHECK(line["lr"].get<double>() == 1e-3);
  CHECK(line["epoch"].get<double>() == doctest::Approx(15.0 / 7.0));
  CHECK(files.size() == 3);  // after iterations 2 and 4, and at the end
  CHECK(read_text_file(folder.path() + "/latest/extra") == "x");
}

TEST_CASE("settings that cannot work are refused") {
  Policy policy;
  auto options = lpo_options("");
  options.lr_scheduler = LearningRateKind::cosine;
  CHECK_THROWS_WITH_AS(run(policy, options), doctest::Contains("use lr_scheduler constant"), ValueError);
  TemporaryFolder folder;
  options = lpo_options(folder.path());
  run(policy, options);
  Policy other;
  options.resume = true;
  options.loss.beta = 3;
  CHECK_THROWS_WITH_AS(run(other, options), doctest::Contains("beta: saved 500"), FileError);
}

TEST_CASE("scores that are not numbers end training with the last good weights and a report") {
  TemporaryFolder folder;
  Policy policy;
  Context<Cpu> context(2);
  Reward reward;
  const NoiseSchedule schedule;
  auto options = lpo_options(folder.path());
  options.max_train_iterations = 50;
  options.checkpointing_iterations = 10;
  LpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, reward.lrm, reward.encoder, schedule,
                     Extents<3>{4, 4, 4}, options);
  std::vector<float> good;
  std::string text;
  try {
    trainer.train(prompts(), [&](const Progress& p) {
      if (p.step == 3 && good.empty()) {
        good = weights(policy.store);
        std::fill_n(reward.store.trainable_values(), 8, std::nanf(""));
      }
      return true;
    });
  } catch (const ValueError& error) {
    text = error.what();
  }
  CHECK(text.find("[LpoTrainer] stopped in iteration 3: [select_pair] the score of row ") == 0);
  CHECK(text.find("the last good weights are in " + folder.path() + "/checkpoint-3") != std::string::npos);
  const auto json = nlohmann::json::parse(read_text_file(folder.path() + "/not_finite.json"));
  CHECK(json["first_iteration"] == 3);
  CHECK(json["last_good_checkpoint"] == folder.path() + "/checkpoint-3");
  CHECK(CheckpointFolder(folder.path(), 0).steps().back() == 3);
  CHECK(SafetensorsFile(folder.path() + "/checkpoint-3/state.safetensors").read_vector<float>("weights") == good);
}

TEST_CASE("stopped while thresholds are looked for: at once, and earlier checkpoints stay") {
  TemporaryFolder folder;
  auto options = lpo_options(folder.path());
  options.threshold_quantile = 0.5;
  options.calibration_rollouts = 1000;
  Policy policy;
  int calls = 0;
  CHECK_THROWS_WITH_AS(run(policy, options, [&](const Progress&) { return ++calls < 7; }),
                       doctest::Contains("cancelled while thresholds were looked for"), CancelledError);
  CHECK(calls == 7);
}
