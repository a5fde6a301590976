// SPDX-License-Identifier: MIT
// LrmTrainer: learns, logs, validates, cancels, and resumes after a kill with the same bits as an uninterrupted run.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

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

TEST_CASE("stopped between the micro-batches of a step: it is dropped, and resumed as if it had not begun") {
  TemporaryFolder whole_folder, cut_folder;
  Reward whole, cut, resumed;
  auto options = lrm_options(whole_folder.path());
  options.micro_batch_size = 1;
  run(whole, options);
  options.output_dir = cut_folder.path();
  std::vector<float> before;
  int asked = 0;
  CHECK_THROWS_WITH_AS(run(cut, options,
                           [&](const Progress& p) {
                             if (p.step == 3 && !p.within_step) before = weights(cut.store);
                             return !(p.step == 3 && p.within_step && ++asked == 2);
                           }),
                       "[LrmTrainer] cancelled after step 3 of 8; the step that was begun is dropped", CancelledError);
  CHECK(asked == 2);  // of three places between four micro-batches
  CHECK(weights(cut.store) == before);
  CHECK(CheckpointFolder(cut_folder.path(), 0).steps() == std::vector<index_t>{2, 3});
  options.resume = true;
  run(resumed, options);
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

TEST_CASE("parts of a batch add up to the batch") {
  Reward whole, parts;
  auto options = lrm_options("");
  options.max_train_steps = 1;
  options.lr_scheduler = LearningRateKind::constant;
  options.max_grad_norm = 0;
  options.optimizer.epsilon = 1.0;  // the update is then nearly the gradient itself
  options.learning_rate = 1.0;
  Reward start;
  run(whole, options);
  options.micro_batch_size = 3;  // of 4
  run(parts, options);
  const auto a = weights(start.store), b = weights(whole.store), c = weights(parts.store);
  double update = 0, difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    update = std::max(update, std::fabs(static_cast<double>(b[i] - a[i])));
    difference = std::max(difference, std::fabs(static_cast<double>(c[i] - b[i])));
  }
  CHECK(update > 1e-3);
  CHECK(difference < 1e-4 * update);  // rounding
}

TEST_CASE("the winner at two timesteps is a pair of a batch, which weighs what aux_coefficient says") {
  const auto data = random_triples(1, 2);
  LrmBatch batch;
  batch.add_unit(data, {4}, 51);
  batch.add_neighbours(data, 5, 101, 151, 3.0f);
  CHECK(batch.images == std::vector<index_t>{3, 5, 5, 5});
  CHECK(batch.timesteps == std::vector<float>{51, 51, 101, 151});
  CHECK(batch.first == std::vector<std::int32_t>{0, 2});
  CHECK(batch.second == std::vector<std::int32_t>{1, 3});
  CHECK(batch.labels[1].label_0 == 1.0f);
  CHECK(batch.labels[1].label_1 == 0.0f);
  CHECK(pair_weights(batch.labels, 0.5f) == std::vector<float>{0.5f, 0.25f});  // both of a prompt with 3 pairs
  const NoiseSchedule schedule;
  const LrmBatch::Noise noise{.normal = {1, 1, 1}, .posterior = {1, 2, 1}, .offset = {1, 3, 1}};
  batch.add_noise(schedule, data, noise);
  CHECK(batch.latents[2 * 64] != batch.latents[3 * 64]);  // noises of their own
  const auto part = batch.part(1, 2);
  CHECK(part.images == std::vector<index_t>{5, 5});
  CHECK(part.second == std::vector<std::int32_t>{1});
  CHECK(part.labels[0].auxiliary);
}

TEST_CASE("a noise offset moves all pixels of a channel alike, and a part of a batch as in the whole") {
  const auto data = random_triples(1, 2);
  const NoiseSchedule schedule;
  LrmBatch plain;
  for (const index_t image : {0, 3, 4}) plain.add_single(data, image, 501);
  LrmBatch moved = plain, part = plain.part(1, 3);
  LrmBatch::Noise noise{.normal = {1, 1, 1}, .posterior = {1, 2, 1}, .offset = {1, 3, 1}};
  plain.add_noise(schedule, data, noise);
  noise.offset_scale = 0.05f;
  moved.add_noise(schedule, data, noise);
  part.add_noise(schedule, data, noise, 1);
  CHECK(std::equal(part.latents.begin(), part.latents.end(), moved.latents.begin() + 64));
  std::vector<float> offsets(3 * 4);
  philox_fill_normal({1, 3, 1}, offsets.data(), offsets.size(), 0);
  const double spread = std::sqrt(1 - schedule.alpha_bar(501));
  for (std::size_t i = 0; i < 3 * 64; ++i) {
    const double expected = spread * 0.05 * static_cast<double>(offsets[i / 64 * 4 + i % 4]);
    CHECK(static_cast<double>(moved.latents[i] - plain.latents[i]) == doctest::Approx(expected).epsilon(1e-4).scale(0.01));
  }
}

TEST_CASE("compared between timesteps, winners score higher with less noise, by more than they would") {
  const auto data = random_pairs(21, 16);
  const auto gain = [&](bool compare) {  // of t = 1 over t = 801, on average and at least
    Reward reward;
    auto options = lrm_options("");
    options.max_train_steps = 80;
    options.train_batch_size = 8;
    options.timestep_interval = 400;
    options.largest_timestep = 801;  // 1, 401, 801
    options.noise_offset = compare ? 0.05 : 0.0;
    options.compare_between_timestep = compare;
    Context<Cpu> context(2);
    const NoiseSchedule schedule;
    LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, options);
    trainer.train(data, {});
    const auto clear = trainer.scores(data, 1).first, noisy = trainer.scores(data, 801).first;
    double total = 0, least = 1e9;
    int winners = 0;
    for (std::size_t i = 0; i < clear.size(); ++i) {
      if (data.labels[i].label_0 < 1) continue;
      const double gap = static_cast<double>(clear[i]) - static_cast<double>(noisy[i]);
      total += gap, least = std::min(least, gap), ++winners;
    }
    return std::pair(total / winners, least);
  };
  const auto with = gain(true), without = gain(false);
  MESSAGE("gain ", with.first, ", at least ", with.second, "; without ", without.first, ", at least ", without.second);
  CHECK(with.second > 0);
  CHECK(with.first > 1.2 * without.first);
}

TEST_CASE("a frozen text encoder keeps its weights") {
  Reward reward;
  Lrm lrm;
  Text text;
  Store store;
  Encoder encoder(text, {19, 19, 19, 19, 19, 19});
  lrm.options.guidance = 2.0f;
  store.add("", lrm);
  store.add("text_encoder", text);
  store.allocate([](const std::string& name) { return !name.starts_with("text_encoder."); });
  store.initialize(3);
  const auto frozen = [&] {
    std::vector<float> values;
    for (const auto& entry : store.entries())
      if (entry.name.starts_with("text_encoder."))
        values.insert(values.end(), entry.parameter->data(), entry.parameter->data() + entry.parameter->size());
    return values;
  };
  const auto before = frozen(), moving = weights(store);
  CHECK_FALSE(before.empty());
  Context<Cpu> context(2);
  const NoiseSchedule schedule;
  LrmTrainer trainer(context, lrm, encoder, store, schedule, lrm_options(""));
  trainer.train(random_pairs(21, 16), random_pairs(22, 12));
  CHECK(frozen() == before);
  CHECK(weights(store) != moving);
}

TEST_CASE("steps that are not finite change nothing, are counted, and end the training with the last good weights") {
  TemporaryFolder folder;
  Reward reward;
  auto options = lrm_options(folder.path());
  options.max_train_steps = 30;
  options.max_skipped_steps = 3;
  options.validation_steps = 0;
  Context<Cpu> context(2);
  const NoiseSchedule schedule;
  auto poisoned = random_pairs(21, 8);
  std::vector<float> at_five;
  LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, options);
  const auto poison = [&](const Progress& p) {
    if (p.step == 5) {
      at_five = weights(reward.store);
      for (float& value : poisoned.mean) value = std::numeric_limits<float>::infinity();
    }
    return true;
  };
  CHECK_THROWS_WITH_AS(trainer.train(poisoned, {}, poison),
                       doctest::Contains("3 steps in a row, beginning in iteration 5 after 5 optimizer steps"), ValueError);
  CHECK(weights(reward.store) == at_five);
  CHECK(CheckpointFolder(folder.path(), 0).steps() == std::vector<index_t>{4, 5});  // none of step 6, which was skipped
  CHECK(read_metric(folder.path() + "/metrics.jsonl", "skipped_steps").value == std::vector<double>{0, 0, 0, 0, 0, 1, 2});
  CHECK(read_metric(folder.path() + "/metrics.jsonl", "train_loss").value.size() == 5);
  CHECK(file_exists(folder.path() + "/not_finite.json"));

  // Resumed on sound data it ends as if nothing had been.
  Reward resumed, whole;
  options.resume = true;
  LrmTrainer again(context, resumed.lrm, resumed.encoder, resumed.store, schedule, options);
  const auto rest = again.train(random_pairs(21, 8), {});
  CHECK(rest.steps == 30);
  CHECK(rest.skipped_steps == 0);
  options.output_dir = "";
  LrmTrainer at_once(context, whole.lrm, whole.encoder, whole.store, schedule, options);
  at_once.train(random_pairs(21, 8), {});
  CHECK(weights(resumed.store) == weights(whole.store));
}

TEST_CASE("a few steps that are not finite are left out and training goes on") {
  Reward reward;
  auto options = lrm_options("");
  options.max_train_steps = 12;
  options.validation_steps = 0;
  Context<Cpu> context(2);
  const NoiseSchedule schedule;
  auto data = random_pairs(21, 8);
  const auto sound = data.mean;
  LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, options);
  const auto report = trainer.train(data, {}, [&](const Progress& p) {
    if (p.step == 5) data.mean.assign(sound.size(), std::numeric_limits<float>::quiet_NaN());
    if (p.step == 7) data.mean = sound;
    return true;
  });
  CHECK(report.steps == 12);
  CHECK(report.skipped_steps == 2);
  for (const float value : weights(reward.store)) REQUIRE(std::isfinite(value));
}

TEST_CASE("gradient checkpointing trains to the same weights") {
  Reward plain, checkpointed;
  auto options = lrm_options("");
  run(plain, options);
  options.gradient_checkpointing = true;
  run(checkpointed, options);
  const auto a = weights(plain.store), b = weights(checkpointed.store);
  for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(b[i] == doctest::Approx(a[i]).epsilon(1e-4));
}

TEST_CASE("accuracy by timestep has intervals that hold it") {
  Reward reward;
  Context<Cpu> context(2);
  const NoiseSchedule schedule;
  LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, lrm_options(""));
  const auto held_out = random_pairs(22, 12);
  const auto list = trainer.accuracy_by_timestep(held_out, {1, 501});
  REQUIRE(list.size() == 2);
  for (const auto& one : list) {
    CHECK(one.interval.accuracy == trainer.accuracy(held_out, one.timestep));
    CHECK(one.interval.low < one.interval.accuracy);
    CHECK(one.interval.accuracy <= one.interval.high);
  }
}

TEST_CASE("the best weights can be had beside the last") {
  Reward reward;
  auto options = lrm_options("");
  options.max_train_steps = 12;
  options.learning_rate = 0.5;  // diverges after a while
  Context<Cpu> context(2);
  const NoiseSchedule schedule;
  LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, options);
  CHECK_FALSE(trainer.use_best_weights());
  const auto held_out = random_pairs(22, 12);
  const auto report = trainer.train(random_pairs(21, 16), held_out);
  REQUIRE(trainer.use_best_weights());
  CHECK(trainer.accuracy(held_out, 1) == doctest::Approx(report.best_validation_accuracy));
}

TEST_CASE("an equal accuracy is not better: the first weights that reach it are the best") {
  Reward reward;
  auto options = lrm_options("");
  options.max_train_steps = 3;
  options.validation_steps = 1;
  options.learning_rate = 0;
  Context<Cpu> context(2);
  const NoiseSchedule schedule;
  LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, options);
  auto held_out = random_pairs(22, 10);
  const auto [first, second] = trainer.scores(held_out, options.validation_timestep);
  for (std::size_t i = 0; i < held_out.labels.size(); ++i) {  // 7 of 10 are right: as a float that is a little less
    const bool wins = (first[i] > second[i]) == (i < 7);
    held_out.labels[i].label_0 = wins ? 1.0f : 0.0f;
    held_out.labels[i].label_1 = wins ? 0.0f : 1.0f;
  }
  const auto report = trainer.train(random_pairs(21, 16), held_out);
  CHECK(report.best_validation_accuracy == doctest::Approx(0.7));
  CHECK(report.best_step == 1);
}

TEST_CASE("a reward model's run goes on with its own features and AdamW only") {
  TemporaryFolder folder;
  auto options = lrm_options(folder.path());
  Reward begun;
  CHECK_THROWS_AS(run(begun, options, [](const Progress& p) { return p.step < 1; }), CancelledError);
  options.resume = true;
  Reward other;
  other.lrm.options.guidance += 1;
  CHECK_THROWS_WITH_AS(run(other, options), doctest::Contains("\n  guidance: saved"), FileError);
  other.lrm.options = begun.lrm.options;
  options.optimizer.beta2 = 0.5;
  CHECK_THROWS_WITH_AS(run(other, options), doctest::Contains("adam_betas: saved"), FileError);
}

TEST_CASE("pairs held out share the images but no prompt with the rest") {
  auto data = random_triples(31, 5);
  const auto held = hold_out_pairs(data, 4);  // of two prompts: 6 pairs
  CHECK(held.size() == 6);
  CHECK(data.size() == 9);
  CHECK(held.images() == data.images());
  for (const auto& pair : held.pairs) CHECK(held.prompt_of(pair) >= 3);
  for (const auto& pair : data.pairs) CHECK(data.prompt_of(pair) < 3);
  CHECK_THROWS_WITH_AS(hold_out_pairs(data, 7), doctest::Contains("leaves none to train on"), ValueError);
  auto one_prompt = random_triples(31, 1);
  CHECK_THROWS_WITH_AS(hold_out_pairs(one_prompt, 1),
                       "[hold_out_pairs] holding out 1 of 3 pairs leaves none to train on: prompts are held out whole, with "
                       "all of their pairs, and there is 1; hold out fewer, or give pairs to validate on",
                       ValueError);
}

TEST_CASE("latents may lie elsewhere") {
  Reward here, there;
  const auto options = lrm_options("");
  run(here, options);
  const auto data = random_pairs(21, 16);
  auto elsewhere = data;
  elsewhere.mean.clear();
  elsewhere.deviation.clear();
  elsewhere.source = std::make_shared<LatentSource>(LatentSource{
      data.images(), true, [&](index_t image, float* mean, float* deviation) { data.read_posterior(image, mean, deviation); }});
  Context<Cpu> context(2);
  const NoiseSchedule schedule;
  LrmTrainer trainer(context, there.lrm, there.encoder, there.store, schedule, options);
  trainer.train(elsewhere, random_pairs(22, 12));
  CHECK(weights(here.store) == weights(there.store));
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
  options.micro_batch_size = 2;
  options.loss.kind = RewardLossOptions::Kind::batch;
  CHECK_THROWS_WITH_AS(run(reward, options), doctest::Contains("micro_batch_size = 0"), ValueError);
  options = lrm_options("");
  options.largest_timestep = 2000;
  CHECK_THROWS_WITH_AS(run(reward, options), doctest::Contains("timesteps"), ValueError);
  options = lrm_options("");
  options.compare_between_timestep = true;
  options.largest_timestep = options.timestep_interval;
  CHECK_THROWS_WITH_AS(run(reward, options), doctest::Contains("needs two timesteps"), ValueError);
  options = lrm_options("");
  options.compare_between_timestep = true;
  options.batch_unit = BatchUnit::prompt;
  CHECK_THROWS_WITH_AS(run(reward, options), doctest::Contains("batch_unit = pair"), ValueError);
}
