// SPDX-License-Identifier: MIT
// DpoTrainer: first loss ln 2, learning, micro-batches, exact resume, refusals.
#include <doctest/doctest.h>

#include <cmath>
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

DpoTrainerReport run(Policy& policy, const LatentPairs& data, const DpoTrainerOptions& options,
                     const ProgressCallback& progress = {}, int threads = 2) {
  Context<Cpu> context(threads);
  const NoiseSchedule schedule;
  DpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, schedule, options);
  return trainer.train(data, progress);
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

TEST_CASE("latents that are read from elsewhere train as those in memory do") {
  const auto data = random_pairs(7, 9);
  auto elsewhere = data;
  elsewhere.mean.clear(), elsewhere.deviation.clear();
  elsewhere.source = std::make_shared<LatentSource>(
      LatentSource{data.images(), true, [&](index_t image, float* mean, float* deviation) { data.read_posterior(image, mean, deviation); }});
  Policy first, second;
  run(first, data, dpo_options(""));
  run(second, elsewhere, dpo_options(""));
  CHECK(weights(first.store) == weights(second.store));
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
