// SPDX-License-Identifier: MIT
// LrmTrainer: learns, logs, validates, cancels, and resumes after a kill with the same bits as an uninterrupted run.
#include <doctest/doctest.h>

#include <cstring>

#include "killed.hpp"
#include "small_world.hpp"

using namespace lpo;
using namespace small_world;

namespace {
LrmTrainerReport run(Reward& reward, const LrmTrainerOptions& options, const ProgressCallback& progress = {}, int threads = 2) {
  Context<Cpu> context(threads);
  const NoiseSchedule schedule;
  LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, options);
  return trainer.train(random_pairs(21, 16), random_pairs(22, 12), progress);
}
}  // namespace

TEST_CASE("the reward model learns an obvious preference") {
  Reward reward;
  auto options = lrm_options("");
  options.max_train_steps = 60;
  options.train_batch_size = 8;
  options.largest_timestep = 101;
  const auto report = run(reward, options);
  CHECK(report.steps == 60);
  CHECK(report.validation_accuracy > 0.9);
}

TEST_CASE("with one pair per prompt, prompts and pairs are the same batches, bit for bit") {
  Reward pairs, prompts;
  auto options = lrm_options("");
  run(pairs, options);
  options.batch_unit = BatchUnit::prompt;
  run(prompts, options);
  CHECK(weights(pairs.store) == weights(prompts.store));
}

TEST_CASE("batches of prompts learn from all pairs of a prompt; an image has one score in all its pairs") {
  Reward reward;
  auto options = lrm_options("");
  options.batch_unit = BatchUnit::prompt;
  options.max_train_steps = 60;
  options.train_batch_size = 6;
  options.largest_timestep = 101;
  Context<Cpu> context(2);
  const NoiseSchedule schedule;
  LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, options);
  const auto held_out = random_triples(32, 20);
  const auto report = trainer.train(random_triples(31, 30), held_out);
  CHECK(report.validation_accuracy > 0.85);
  const auto [first, second] = trainer.scores(held_out, 1);
  for (std::size_t i = 0; i < first.size(); i += 3) {  // pairs (a, b), (a, c), (b, c)
    CHECK(first[i] == first[i + 1]);
    CHECK(second[i] == first[i + 2]);
    CHECK(second[i + 1] == second[i + 2]);
  }
}

TEST_CASE("killed and resumed equals uninterrupted, byte for byte, with and without averaged weights") {
  TemporaryFolder whole_folder, cut_folder;
  double decay = 0;
  SUBCASE("plain") {}
  SUBCASE("averaged") { decay = 0.9; }
  auto options = lrm_options(whole_folder.path());
  options.ema_decay = decay;
  Reward whole;
  run(whole, options);
  options.output_dir = cut_folder.path();
  run_and_kill([&](auto&& die) {
    Reward cut;
    run(cut, options, [&](const Progress& p) {
      if (p.step == 5) die();
      return true;
    });
  });
  Reward resumed;
  options.resume = true;
  index_t first = -1;
  run(resumed, options, [&](const Progress& p) {
    if (first < 0) first = p.first_step;
    return true;
  });
  CHECK(first == 4);  // checkpoints every 2 steps, killed after step 5
  CHECK(weights(resumed.store) == weights(whole.store));
  CHECK(read_text_file(cut_folder.path() + "/metrics.jsonl") == read_text_file(whole_folder.path() + "/metrics.jsonl"));
}

TEST_CASE("the number of threads does not change a bit") {
  Reward one, three;
  run(one, lrm_options(""), {}, 1);
  run(three, lrm_options(""), {}, 3);
  CHECK(weights(one.store) == weights(three.store));
}

TEST_CASE("cancelling saves what is complete, other settings are refused") {
  TemporaryFolder folder;
  {
    Reward reward;
    CHECK_THROWS_AS(run(reward, lrm_options(folder.path()), [](const Progress& p) { return p.step < 3; }), CancelledError);
  }
  CHECK(CheckpointFolder(folder.path(), 0).steps().back() == 3);
  Reward other;
  auto options = lrm_options(folder.path());
  options.resume = true;
  options.learning_rate = 1e-4;
  CHECK_THROWS_WITH_AS(run(other, options), doctest::Contains("learning_rate: saved"), FileError);
}

TEST_CASE("export = best keeps the weights of the best validation") {
  Reward reward;
  auto options = lrm_options("");
  options.max_train_steps = 12;
  options.learning_rate = 0.5;  // diverges after a while
  options.export_weights = LrmTrainerOptions::Export::best;
  const auto report = run(reward, options);
  CHECK(report.validation_accuracy == doctest::Approx(report.best_validation_accuracy));
}

TEST_CASE("wrong options name themselves") {
  Reward reward;
  auto options = lrm_options("");
  options.train_batch_size = 0;
  CHECK_THROWS_WITH_AS(run(reward, options), doctest::Contains("train_batch_size"), ValueError);
  options = lrm_options("");
  options.batch_unit = BatchUnit::prompt;
  options.loss.kind = RewardLossOptions::Kind::both;
  CHECK_THROWS_WITH_AS(run(reward, options), doctest::Contains("batch_unit = pair"), ValueError);
  options = lrm_options("");
  options.largest_timestep = 2000;
  CHECK_THROWS_WITH_AS(run(reward, options), doctest::Contains("timesteps"), ValueError);
}
