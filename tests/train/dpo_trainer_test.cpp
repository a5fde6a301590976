// SPDX-License-Identifier: MIT
// DpoTrainer: first loss ln 2, learning, micro-batches, exact resume, averages, 16-bit networks, steps without finite
// gradients, refusals.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include <lpo/train/dpo_trainer.hpp>

#include "killed.hpp"
#include "small_world.hpp"

using namespace lpo;
using namespace small_world;

namespace {

DpoTrainerOptions dpo_options(const std::string& folder) {
  DpoTrainerOptions o;
  o.max_train_steps = 6;
  o.train_batch_size = 5;
  o.micro_batch_size = 0;
  o.beta_dpo = 50;
  o.learning_rate = 1e-3;
  o.lr_warmup_steps = 0;
  o.checkpointing_steps = 2;
  o.seed = 21;
  o.output_dir = folder;
  return o;
}

template <class T>
DpoTrainerReport run(PolicyIn<T>& policy, const LatentPairs& data, const DpoTrainerOptions& options,
                     const ProgressCallback& progress = {}, int threads = 2) {
  Context<Cpu> context(threads);
  const NoiseSchedule schedule;
  DpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, schedule, options);
  return trainer.train(data, progress);
}

/// The same pairs, read through a source whose images have no numbers while `damaged` holds.
LatentPairs read_elsewhere(const LatentPairs& data, const bool& damaged) {
  LatentPairs elsewhere = data;
  elsewhere.mean.clear(), elsewhere.deviation.clear();
  elsewhere.source = std::make_shared<LatentSource>(
      LatentSource{data.images(), true, [&](index_t image, float* mean, float* deviation) {
                     data.read_posterior(image, mean, deviation);
                     if (damaged) *mean = std::numeric_limits<float>::quiet_NaN();
                   }});
  return elsewhere;
}

double number(const nlohmann::json& line, const char* key) { return line[key].get<double>(); }

}  // namespace

TEST_CASE("with LoRA B = 0 the first loss is ln 2 and no pair is preferred") {
  TemporaryFolder folder;
  Policy policy;
  auto options = dpo_options(folder.path());
  options.max_train_steps = 1;
  CHECK(run(policy, random_pairs(1, 9), options).pairs == 9);
  const auto line = read_metrics(folder.path() + "/metrics.jsonl").front();
  CHECK(number(line, "train_loss") == doctest::Approx(std::log(2.0)).epsilon(1e-12));
  CHECK(number(line, "implicit_acc") == 0.0);
  CHECK(number(line, "grad_norm") > 0.0);
}

TEST_CASE("micro-batches of any size give the loss and the gradient of the whole batch") {
  const auto data = random_pairs(2, 9);
  TemporaryFolder whole_folder, parts_folder;
  Policy whole, parts;
  auto options = dpo_options(whole_folder.path());
  options.max_train_steps = 2;
  run(whole, data, options);
  options.output_dir = parts_folder.path();
  options.micro_batch_size = 2;  // 5 = 2 + 2 + 1
  run(parts, data, options);
  const auto one = read_metrics(whole_folder.path() + "/metrics.jsonl"), many = read_metrics(parts_folder.path() + "/metrics.jsonl");
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(number(many[i], "train_loss") == doctest::Approx(number(one[i], "train_loss")).epsilon(1e-4));
    CHECK(number(many[i], "grad_norm") == doctest::Approx(number(one[i], "grad_norm")).epsilon(1e-4));
  }
}

TEST_CASE("training denoises preferred images better than rejected ones") {
  TemporaryFolder folder;
  Policy policy;
  auto options = dpo_options(folder.path());
  options.max_train_steps = 60;
  options.train_batch_size = 16;
  options.learning_rate = 3e-3;
  options.proportion_empty_prompts = 0;
  run(policy, random_pairs(3, 40), options);
  const auto lines = read_metrics(folder.path() + "/metrics.jsonl");
  double accuracy = 0, loss = 0;
  for (std::size_t i = 40; i < 60; ++i) accuracy += number(lines[i], "implicit_acc") / 20, loss += number(lines[i], "train_loss") / 20;
  CHECK(accuracy > 0.6);
  CHECK(loss < std::log(2.0));
}

TEST_CASE("which image comes first does not matter, and ties are dropped") {
  auto data = random_pairs(4, 6);
  TemporaryFolder first_folder, second_folder;
  Policy first, second;
  CHECK(run(first, data, dpo_options(first_folder.path())).pairs == 6);
  for (std::size_t i = 0; i < data.pairs.size(); ++i) {
    std::swap(data.pairs[i].first, data.pairs[i].second);
    std::swap(data.labels[i].label_0, data.labels[i].label_1);
  }
  data.add_pair(0, 1, {0.5f, 0.5f, 1.0f, false});
  CHECK(run(second, data, dpo_options(second_folder.path())).pairs == 6);
  CHECK(weights(first.store) == weights(second.store));
}

TEST_CASE("killed and resumed equals uninterrupted, byte for byte; the number of threads does not change a bit") {
  const auto data = random_pairs(5, 9);
  TemporaryFolder whole_folder, cut_folder;
  Policy whole, resumed, single;
  run(whole, data, dpo_options(whole_folder.path()));
  run(single, data, dpo_options(""), {}, 1);
  CHECK(weights(single.store) == weights(whole.store));
  run_and_kill([&](auto&& die) {
    Policy cut;
    run(cut, data, dpo_options(cut_folder.path()), [&](const Progress& p) {
      if (p.step == 3) die();
      return true;
    });
  });
  auto options = dpo_options(cut_folder.path());
  options.resume = true;
  run(resumed, data, options);
  CHECK(weights(resumed.store) == weights(whole.store));
  CHECK(read_text_file(cut_folder.path() + "/metrics.jsonl") == read_text_file(whole_folder.path() + "/metrics.jsonl"));
}

TEST_CASE("stopped between the micro-batches of a step: it is dropped, and resumed as if it had not begun") {
  const auto data = random_pairs(5, 9);
  TemporaryFolder whole_folder, cut_folder;
  Policy whole, cut, resumed;
  auto options = dpo_options(whole_folder.path());
  options.micro_batch_size = 1;
  run(whole, data, options);
  options.output_dir = cut_folder.path();
  std::vector<float> before;
  int asked = 0;
  CHECK_THROWS_WITH_AS(run(cut, data, options,
                           [&](const Progress& p) {
                             if (p.step == 3 && !p.within_step) before = weights(cut.store);
                             return !(p.step == 3 && p.within_step && ++asked == 3);
                           }),
                       "[DpoTrainer] cancelled after step 3 of 6; the step that was begun is dropped", CancelledError);
  CHECK(asked == 3);  // of four places between five micro-batches
  CHECK(weights(cut.store) == before);
  CHECK(CheckpointFolder(cut_folder.path(), 0).steps() == std::vector<index_t>{2, 3});
  options.resume = true;
  run(resumed, data, options);
  CHECK(weights(resumed.store) == weights(whole.store));
  CHECK(read_text_file(cut_folder.path() + "/metrics.jsonl") == read_text_file(whole_folder.path() + "/metrics.jsonl"));
}

TEST_CASE("latents that are read from elsewhere train as those in memory do") {
  const auto data = random_pairs(7, 9);
  const bool damaged = false;
  const auto elsewhere = read_elsewhere(data, damaged);
  Policy first, second;
  run(first, data, dpo_options(""));
  run(second, elsewhere, dpo_options(""));
  CHECK(weights(first.store) == weights(second.store));
}

TEST_CASE("an average of the weights is kept, survives a stop, and changes places with them") {
  const auto data = random_pairs(8, 9);
  TemporaryFolder whole_folder, cut_folder;
  auto options = dpo_options(whole_folder.path());
  options.ema_decay = 0.5;
  const auto average_of = [&](Policy& policy, const DpoTrainerOptions& o, const ProgressCallback& progress = {}) {
    Context<Cpu> context(2);
    const NoiseSchedule schedule;
    DpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, schedule, o);
    trainer.train(data, progress);
    const auto last = weights(policy.store);
    trainer.ema()->swap();
    auto average = weights(policy.store);
    trainer.ema()->swap();
    CHECK(weights(policy.store) == last);
    return average;
  };
  Policy whole;
  const auto average = average_of(whole, options);
  CHECK_FALSE(average == weights(whole.store));
  options.output_dir = cut_folder.path();
  Policy cut;
  CHECK_THROWS_WITH_AS(average_of(cut, options, [](const Progress& p) { return p.step < 3; }),
                       "[DpoTrainer] cancelled after step 3 of 6", CancelledError);
  Policy resumed;
  options.resume = true;
  CHECK(average_of(resumed, options) == average);
  CHECK(weights(resumed.store) == weights(whole.store));
  CHECK(CheckpointFolder(cut_folder.path(), 0).steps() == std::vector<index_t>{4, 6});

  // One step from the weights w to w': the average is their mean.
  auto one = dpo_options("");
  one.max_train_steps = 1;
  one.ema_decay = 0.5;
  Policy policy;
  const auto before = weights(policy.store), between = average_of(policy, one), after = weights(policy.store);
  for (std::size_t i = 0; i < before.size(); ++i)
    CHECK(between[i] == doctest::Approx(0.5 * (before[i] + after[i])).epsilon(1e-6));
}

TEST_CASE("gradient checkpointing changes no bit") {
  const auto data = random_pairs(9, 9);
  Policy whole, checkpointed;
  run(whole, data, dpo_options(""));
  auto options = dpo_options("");
  options.gradient_checkpointing = true;
  run(checkpointed, data, options);
  CHECK(weights(checkpointed.store) == weights(whole.store));
}

TEST_CASE_TEMPLATE("16-bit networks: the first loss is ln 2, gradients are float's, resuming keeps the bits", T, bfloat16,
                   half) {
  const auto data = random_pairs(10, 9);
  TemporaryFolder wide_folder, whole_folder, cut_folder;
  auto options = dpo_options(wide_folder.path());
  Policy wide;
  run(wide, data, options);
  options.output_dir = whole_folder.path();
  options.loss_scale = 256;
  PolicyIn<T> whole, cut, resumed;
  run(whole, data, options);
  const auto reference = read_metrics(wide_folder.path() + "/metrics.jsonl").front();
  const auto rounded = read_metrics(whole_folder.path() + "/metrics.jsonl").front();
  CHECK(number(rounded, "train_loss") == doctest::Approx(std::log(2.0)).epsilon(1e-12));  // both round alike
  CHECK(number(rounded, "grad_norm") == doctest::Approx(number(reference, "grad_norm")).epsilon(0.1));
  options.output_dir = cut_folder.path();
  CHECK_THROWS_AS(run(cut, data, options, [](const Progress& p) { return p.step < 3; }), CancelledError);
  options.resume = true;
  run(resumed, data, options);
  const auto a = weights(whole.store), b = weights(resumed.store);
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
  CHECK(read_text_file(cut_folder.path() + "/metrics.jsonl") == read_text_file(whole_folder.path() + "/metrics.jsonl"));
}

TEST_CASE("steps without finite gradients change nothing; too many in a row end training with the last good weights") {
  const auto data = random_pairs(11, 9);
  bool damaged = false;
  const auto elsewhere = read_elsewhere(data, damaged);
  TemporaryFolder few_folder, many_folder;
  Policy few;
  std::vector<float> good;
  const auto report = run(few, elsewhere, dpo_options(few_folder.path()), [&](const Progress& p) {
    damaged = p.step == 2 || p.step == 3;
    if (p.step == 2) good = weights(few.store);
    if (p.step == 4) CHECK(weights(few.store) == good);
    return true;
  });
  CHECK(report.steps == 6);
  CHECK(report.skipped_steps == 2);
  const auto lines = read_metrics(few_folder.path() + "/metrics.jsonl");
  CHECK(lines[3]["train_loss"].is_null());
  CHECK(number(lines[5], "skipped_steps") == 2);
  CHECK(number(lines[5], "global_step") == 4);

  Policy many;
  auto options = dpo_options(many_folder.path());
  options.max_train_steps = 50;
  options.max_skipped_steps = 3;
  std::string text;
  try {
    run(many, elsewhere, options, [&](const Progress& p) {
      damaged = p.step >= 3;
      if (p.step == 3) good = weights(many.store);
      return true;
    });
  } catch (const ValueError& error) {
    text = error.what();
  }
  CHECK(text.find("not finite in 3 steps in a row, beginning in iteration 3 after 3 optimizer steps") != std::string::npos);
  CHECK(text.find("the last good weights are in " + many_folder.path() + "/checkpoint-3; lower learning_rate or beta_dpo") !=
        std::string::npos);
  CHECK(weights(many.store) == good);
  CHECK(CheckpointFolder(many_folder.path(), 0).steps() == std::vector<index_t>{2, 3});
  damaged = false;
  options.resume = true;
  options.max_train_steps = 5;
  CHECK(run(many, elsewhere, options).steps == 5);
}

TEST_CASE("what cannot be trained is refused") {
  Policy policy;
  auto ties = random_pairs(6, 2);
  for (auto& label : ties.labels) label.label_0 = label.label_1 = 0.5f;
  CHECK_THROWS_WITH_AS(run(policy, ties, dpo_options("")), "[DpoTrainer] none of 2 pairs has a preferred image", ValueError);
  auto options = dpo_options("");
  options.proportion_empty_prompts = 1.5;
  CHECK_THROWS_WITH_AS(run(policy, random_pairs(6, 2), options),
                       doctest::Contains("proportion_empty_prompts"), ValueError);
}
