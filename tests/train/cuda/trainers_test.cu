// SPDX-License-Identifier: MIT
// Trainers on a CUDA device: they learn, start at the method's values, give the same bits twice, after a resume, and
// with captured steps as without.
#define LPO_SMALL_WORLD_DEVICE lpo::Cuda

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <tuple>

#include <lpo/cuda.cuh>
#include <lpo/io/latent_reward_folder.hpp>
#include <lpo/train/dpo_trainer.hpp>
#include <lpo/train/predicted_image_model.hpp>

#include "train/small_rater.hpp"

using namespace small_world;

namespace {

constexpr lpo::CudaOptions launched{.graphs = false};
std::size_t graph_launches = 0;  // of the last run to its end

lpo::LrmTrainerReport train(Reward& reward, const lpo::LrmTrainerOptions& options,
                            const lpo::ProgressCallback& progress = {}, const lpo::CudaOptions& device = {}) {
  lpo::Context<lpo::Cuda> context(device);
  const lpo::NoiseSchedule schedule;
  lpo::LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, options);
  const bool prompts = options.batch_unit == lpo::BatchUnit::prompt;
  const auto report = prompts ? trainer.train(random_triples(21, 16), random_triples(22, 12), progress)
                              : trainer.train(random_pairs(21, 16), random_pairs(22, 12), progress);
  graph_launches = context.graph_launches();
  return report;
}

/// A preference model, by the trainer of reward models.
void train(Rater& rater, const lpo::LrmTrainerOptions& options, const lpo::CudaOptions& device) {
  lpo::Context<lpo::Cuda> context(device);
  Policy generator;
  const lpo::NoiseSchedule schedule;
  lpo::PredictedImageModel model(generator.unet, rater.vae, rater.model, schedule, 2.0);
  lpo::PreferenceTextEncoder text(generator.encoder, rater.model);
  lpo::LrmTrainer trainer(context, model, text, rater.store, schedule, options);
  trainer.train(random_pairs(1, 12), random_pairs(2, 6));
  graph_launches = context.graph_launches();
}

template <class T>
lpo::DpoTrainerReport train(PolicyIn<T>& policy, const lpo::DpoTrainerOptions& options,
                            const lpo::ProgressCallback& progress = {}, const lpo::CudaOptions& device = {}) {
  lpo::Context<lpo::Cuda> context(device);
  const lpo::NoiseSchedule schedule;
  lpo::DpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, schedule, options);
  const auto report = trainer.train(random_pairs(5, 9), progress);
  graph_launches = context.graph_launches();
  return report;
}

lpo::DpoTrainerOptions dpo_options(const std::string& folder) {
  lpo::DpoTrainerOptions o;
  o.max_train_steps = 6;
  o.train_batch_size = 5;
  o.micro_batch_size = 2;  // 5 = 2 + 2 + 1: three kinds of passes
  o.beta_dpo = 50;
  o.learning_rate = 1e-3;
  o.lr_warmup_steps = 0;
  o.checkpointing_steps = 2;
  o.seed = 21;
  o.output_dir = folder;
  return o;
}

template <class T>
lpo::LpoTrainerReport train(PolicyIn<T>& policy, const lpo::LpoTrainerOptions& options,
                            const lpo::ProgressCallback& progress = {}, const lpo::CudaOptions& device = {}) {
  lpo::Context<lpo::Cuda> context(device);
  RewardIn<T> reward;
  const lpo::NoiseSchedule schedule;
  lpo::LpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, reward.lrm, reward.encoder, schedule,
                          lpo::Extents<3>{4, 4, 4}, options);
  return trainer.train(prompts(), progress);
}

/// Stops the run before its last steps.
template <class Model, class Options>
void train_and_stop(Model& model, const Options& options, lpo::index_t step) {
  CHECK_THROWS_AS(train(model, options, [&](const lpo::Progress& p) { return p.step < step; }), lpo::CancelledError);
}

template <class T>
bool same_bits(lpo::ParameterStore<T, lpo::Cuda>& one, lpo::ParameterStore<T, lpo::Cuda>& other) {
  const auto a = weights(one), b = weights(other);
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace

TEST_CASE("the reward model learns an obvious preference on a CUDA device") {
  Reward reward;
  auto options = lrm_options("");
  options.max_train_steps = 60;
  options.train_batch_size = 8;
  options.largest_timestep = 101;
  CHECK(train(reward, options).validation_accuracy > 0.9);
}

TEST_CASE("a reward model in device memory is saved and read back") {
  TemporaryFolder folder;
  Reward saved, read;
  read.store.initialize(9);
  lpo::save_latent_reward_model(folder.path(), saved.lrm, saved.store, std::tie(saved.text));
  lpo::load_latent_reward_model(folder.path(), read.lrm, read.store, std::tie(read.text));
  CHECK(weights(read.store) == weights(saved.store));
}

TEST_CASE("with LoRA B = 0 the first LPO loss is ln 2 and both ratios are exactly 1 on a CUDA device") {
  TemporaryFolder folder;
  Policy policy;
  auto options = lpo_options(folder.path());
  options.max_train_iterations = 1;
  options.train_batch_size = 1000;
  CHECK(train(policy, options).pairs > 0);
  const auto line = lpo::read_metrics(folder.path() + "/metrics.jsonl").front();
  CHECK(line["train_loss"].get<double>() == doctest::Approx(std::log(2.0)).epsilon(1e-12));
  CHECK(line["train_ratio_win"].get<double>() == 1.0);
  CHECK(line["train_ratio_lose"].get<double>() == 1.0);
  CHECK(line["grad_norm"].get<double>() > 0.0);
}

TEST_CASE("two runs on a CUDA device give the same bits, and so does a resumed one") {
  TemporaryFolder whole_folder, cut_folder;
  Reward whole, again, cut, resumed;
  auto options = lrm_options(whole_folder.path());
  options.ema_decay = 0.9;
  train(whole, options);
  options.output_dir = "";
  train(again, options);
  CHECK(weights(again.store) == weights(whole.store));
  options.output_dir = cut_folder.path();
  train_and_stop(cut, options, 5);
  options.resume = true;
  train(resumed, options);
  CHECK(weights(resumed.store) == weights(whole.store));
}

TEST_CASE("LPO on a CUDA device: the same bits twice and after a resume") {
  TemporaryFolder whole_folder, cut_folder;
  Policy whole, cut, resumed;
  auto options = lpo_options(whole_folder.path());
  train(whole, options);
  options.output_dir = cut_folder.path();
  train_and_stop(cut, options, 3);
  options.resume = true;
  train(resumed, options);
  CHECK(weights(resumed.store) == weights(whole.store));
}

TEST_CASE("LPO with captured steps gives the bits of LPO without") {
  for (const lpo::index_t micro : {0, 2}) {
    Policy captured, plain;
    auto options = lpo_options("");
    options.max_train_iterations = 6;  // sizes of mini-batches come often enough to be replayed
    options.micro_batch_size = micro;
    options.max_rows = 3;
    train(captured, options);
    train(plain, options, {}, launched);
    CHECK(weights(captured.store) == weights(plain.store));
  }
}

TEST_CASE("a reward model's captured steps give the bits of launched ones, also after a resume") {
  auto options = lrm_options("");
  options.ema_decay = 0.9;
  // Of 8 steps, the first passes of each kind are launched, the others two graphs each; and of scores, in 4 validations
  // of 24 or 36 images, all passes but the first.
  std::size_t training = 7 * 2, scoring = 4 * 6 - 1;
  SUBCASE("whole batches") {}
  SUBCASE("small passes") { options.micro_batch_size = 1, training = (7 + 8 * 3 - 1) * 2, scoring = 4 * 24 - 1; }
  SUBCASE("small passes, checkpointed") {
    options.micro_batch_size = 3, options.gradient_checkpointing = true;
    training = (7 + 7) * 2, scoring = 4 * 6 - 1 + 4 * 6 - 1;
  }
  SUBCASE("both losses") { options.loss.kind = lpo::RewardLossOptions::Kind::both; }
  SUBCASE("prompts") { options.batch_unit = lpo::BatchUnit::prompt, scoring = 4 * 9 - 1; }
  Reward captured, plain, cut, resumed;
  const auto one = train(captured, options);
  CHECK(graph_launches == training + scoring);
  const auto other = train(plain, options, {}, launched);
  CHECK(graph_launches == 0);
  CHECK(same_bits(captured.store, plain.store));
  CHECK(one.final_loss == other.final_loss);
  CHECK(one.validation_accuracy == other.validation_accuracy);
  TemporaryFolder folder;
  options.output_dir = folder.path();
  train_and_stop(cut, options, 5);
  options.resume = true;
  train(resumed, options);
  CHECK(same_bits(resumed.store, plain.store));
}

TEST_CASE("a preference model's captured steps give the bits of launched ones") {
  auto options = lrm_options("");
  options.micro_batch_size = 2;
  options.shared_pair_noise = true;
  Rater captured, plain, start;
  train(captured, options, lpo::CudaOptions{});
  CHECK(graph_launches > 0);
  train(plain, options, launched);
  CHECK(same_bits(captured.store, plain.store));
  CHECK_FALSE(same_bits(captured.store, start.store));
}

TEST_CASE_TEMPLATE("DPO: ln 2 at the start; captured steps give the bits of launched ones, also after a resume", T,
                   float, lpo::bfloat16) {
  TemporaryFolder folder, cut_folder;
  PolicyIn<T> captured, plain, cut, resumed;
  auto options = dpo_options(folder.path());
  SUBCASE("plain") {}
  SUBCASE("checkpointed, averaged") { options.gradient_checkpointing = true, options.ema_decay = 0.9; }
  train(captured, options);
  CHECK(graph_launches == 5 * 3 * 3);  // 6 steps of three kinds of passes, the first of each launched, 3 graphs each
  const auto line = lpo::read_metrics(folder.path() + "/metrics.jsonl").front();
  CHECK(line["train_loss"].template get<double>() == doctest::Approx(std::log(2.0)).epsilon(1e-12));
  CHECK(line["grad_norm"].template get<double>() > 0.0);
  options.output_dir = "";
  train(plain, options, {}, launched);
  CHECK(same_bits(captured.store, plain.store));
  options.output_dir = cut_folder.path();
  train_and_stop(cut, options, 3);
  options.resume = true;
  train(resumed, options);
  CHECK(same_bits(resumed.store, plain.store));
}

TEST_CASE("LPO of a bfloat16 network on a CUDA device: ln 2 at the start, the same bits after a resume") {
  TemporaryFolder whole_folder, cut_folder;
  PolicyIn<lpo::bfloat16> whole, cut, resumed;
  auto options = lpo_options(whole_folder.path());
  options.train_batch_size = 1000;
  train(whole, options);
  const auto line = lpo::read_metrics(whole_folder.path() + "/metrics.jsonl").front();
  CHECK(line["train_loss"].get<double>() == doctest::Approx(std::log(2.0)).epsilon(1e-12));
  CHECK(line["train_ratio_win"].get<double>() == 1.0);
  CHECK(line["grad_norm"].get<double>() > 0.0);
  options.output_dir = cut_folder.path();
  train_and_stop(cut, options, 3);
  options.resume = true;
  train(resumed, options);
  const auto a = weights(whole.store), b = weights(resumed.store);
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(a[i].bits == b[i].bits);
}
