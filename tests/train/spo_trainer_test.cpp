// SPDX-License-Identifier: MIT
// SPO: predicted pictures and scores against the parts they are made of, predictions used again without changing a bit,
// the trainer, and the training of its preference model.
#include <doctest/doctest.h>

#include <cmath>

#include <lpo/autograd/embedding.hpp>
#include <lpo/train/predicted_image_model.hpp>

#include "killed.hpp"
#include "small_rater.hpp"

using namespace lpo;
using namespace small_world;

namespace {

SpoTrainerOptions spo_options_in(const std::string& folder) { return spo_options(lpo_options(folder)); }

LpoTrainerReport run(Policy& policy, const SpoTrainerOptions& options, const ProgressCallback& progress = {}) {
  Context<Cpu> context(2);
  return train_spo(context, policy, options, progress);
}

}  // namespace

TEST_CASE("options are SPO's of SD1.5") {
  const SpoTrainerOptions o;
  CHECK(o.loss.beta == 10);
  CHECK(o.loss.clip == 0.1);
  CHECK(o.threshold.mode == ThresholdMode::constant);
  CHECK(o.threshold.constant == 0.3);
  CHECK(o.rollout.candidates == 4);
  CHECK(o.learning_rate == 6e-5);
  const NoiseSchedule schedule;
  CHECK(ddim_steps(schedule, 20, 1.0)[static_cast<std::size_t>(o.rollout.divert_start_step)].timestep == 751);
}

TEST_CASE("a score is that of the picture which the prediction at the arrival promises") {
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  Policy policy;
  Rater rater;
  const NoiseSchedule schedule;
  const auto ids = random_ids(3, 2);
  const auto batch = encode_prompts<float>(tape, policy.encoder, std::span<const std::int32_t>(ids), 2);
  Tensor<float, 4, Cpu> latents(Extents<4>{4, 4, 4, 4});  // two candidates of two prompts
  fill_normal(context, latents.view(), {1, 2, 3});
  PredictedImageScorer scorer(tape, policy.unet, rater.vae, rater.model, schedule, 2.0, index_t{0});
  PredictedImageScorer chunked(tape, policy.unet, rater.vae, rater.model, schedule, 2.0, index_t{3});
  scorer.set_prompts(batch, ids, 2);
  chunked.set_prompts(batch, ids, 2);
  for (const int timestep : {251, 1}) {
    const auto step = ddim_step(schedule, timestep, 50, 1.0);
    std::vector<float> scores(4), again(4);
    scorer.score(latents.view(), step, scores);
    chunked.score(latents.view(), step, again);
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(again[i] == doctest::Approx(scores[i]).epsilon(1e-5));
      // By hand, one row at a time.
      const auto guard = tape.inference();
      const auto x = latents.view().slice(0, static_cast<index_t>(i), static_cast<index_t>(i) + 1);
      const index_t prompt[] = {static_cast<index_t>(i % 2)};
      const float t[] = {static_cast<float>(step.arrival)};
      Tensor<float, 4, Cpu> clean(Extents<4>{1, 4, 4, 4}), pixels(Extents<4>{1, 12, 12, 3});
      if (step.arrival > 0) {
        const auto eps = guided_prediction(policy.unet, batch, prompt, constant(tape, x), t, 2.0);
        const double abar = schedule.alpha_bar(step.arrival);
        evaluate(&context, clean.view(), (x - std::sqrt(1 - abar) * eps.view()) * (1 / std::sqrt(abar)));
      } else {
        evaluate(&context, clean.view(), 1.0 * x);
      }
      const Var<float, 4, Cpu> unscaled = constant(tape, clean) * (1 / 0.18215);
      const Var<float, 4, Cpu> picture = rater.vae.decode(unscaled);
      CHECK(picture.extent(1) == 8);
      clip_pixels<float>(context, picture.view(), pixels.view());
      const auto text = rater.model.text(tape, std::span(ids).subspan(6 * (i % 2), 6), 1);
      const double expected = item(rater.model.score(constant(tape, pixels), t, text));
      CHECK(scores[i] == doctest::Approx(expected).epsilon(2e-4));
      tape.clear();
    }
  }
}

TEST_CASE("the prediction of the candidate that is gone on with is the next step's") {
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  Policy policy;
  Rater rater;
  const NoiseSchedule schedule;
  const auto ids = random_ids(3, 2);
  const auto batch = encode_prompts<float>(tape, policy.encoder, std::span<const std::int32_t>(ids), 2);
  Tensor<float, 4, Cpu> latents(Extents<4>{4, 4, 4, 4}), next(Extents<4>{2, 4, 4, 4}), known(next.extents()),
      computed(next.extents());
  fill_normal(context, latents.view(), {1, 2, 3});
  PredictedImageScorer scorer(tape, policy.unet, rater.vae, rater.model, schedule, 2.0, index_t{0});
  scorer.set_prompts(batch, ids, 2);
  std::vector<float> scores(4);
  scorer.score(latents.view(), ddim_step(schedule, 251, 50, 1.0), scores);
  const int chosen[] = {1, 0};
  scorer.continue_with(chosen);
  std::copy_n(latents.data() + 2 * 64, 64, next.data());       // candidate 1 of prompt 0
  std::copy_n(latents.data() + 1 * 64, 64, next.data() + 64);  // candidate 0 of prompt 1
  GuidedDenoiser<UNet> denoiser(tape, policy.unet, 2.0);
  denoiser.set_prompts(batch);
  denoiser.predict(next.view(), 201.0, computed.view());
  REQUIRE(scorer.known_prediction(201.0, known.view()));
  for (index_t i = 0; i < known.size(); ++i)
    CHECK(known.data()[i] == doctest::Approx(computed.data()[i]).epsilon(1e-5));
  CHECK_FALSE(scorer.known_prediction(201.0, known.view()));  // used once
  scorer.score(latents.view(), ddim_step(schedule, 251, 50, 1.0), scores);
  scorer.continue_with(chosen);
  CHECK_FALSE(scorer.known_prediction(151.0, known.view()));  // another time
  scorer.score(latents.view(), ddim_step(schedule, 1, 50, 1.0), scores);
  scorer.continue_with(chosen);
  CHECK_FALSE(scorer.known_prediction(0.0, known.view()));  // the chain has ended
}

TEST_CASE("the first loss is ln 2, steps before divert_start_step are not trained, and runs resume exactly") {
  TemporaryFolder folder, cut_folder;
  Policy policy, cut, resumed;
  auto options = spo_options_in(folder.path());
  options.train_batch_size = 1000;
  const auto report = run(policy, options);
  const auto lines = read_metrics(folder.path() + "/metrics.jsonl");
  CHECK(lines.front()["train_loss"].get<double>() == doctest::Approx(std::log(2.0)).epsilon(1e-12));
  CHECK(lines.front()["train_ratio_win"].get<double>() == 1.0);
  CHECK(report.pairs > 0);
  CHECK(report.drawn_per_step == std::vector<double>{0, 15, 15, 15, 15});  // the first step was not compared
  CHECK(report.kept_per_step.front() == 0.0);

  options.output_dir = cut_folder.path();
  CHECK_THROWS_AS(run(cut, options, [](const Progress& p) { return p.step < 3; }), CancelledError);
  options.resume = true;
  run(resumed, options);
  CHECK(weights(resumed.store) == weights(policy.store));
  CHECK(read_text_file(cut_folder.path() + "/metrics.jsonl") == read_text_file(folder.path() + "/metrics.jsonl"));
}

TEST_CASE("its preference model learns brightness by LrmTrainer, and resumes exactly") {
  Context<Cpu> context(2);
  const auto train = [&](Rater& rater, const std::string& folder, bool resume, index_t stop) {
    Policy generator;
    const NoiseSchedule schedule;
    PredictedImageModel model(generator.unet, rater.vae, rater.model, schedule, 2.0);
    PreferenceTextEncoder text(generator.encoder, rater.model);
    auto options = lrm_options(folder);
    options.shared_pair_noise = true;
    options.timestep_interval = 1;
    options.largest_timestep = 999;
    options.max_train_steps = 6;
    options.resume = resume;
    LrmTrainer trainer(context, model, text, rater.store, schedule, options);
    return trainer.train(random_pairs(1, 12), random_pairs(2, 6), [&](const Progress& p) { return p.step < stop; });
  };
  TemporaryFolder whole_folder, cut_folder;
  Rater whole, cut, resumed, start;
  const auto report = train(whole, whole_folder.path(), false, 100);
  CHECK(report.steps == 6);
  CHECK(report.skipped_steps == 0);
  CHECK(weights(whole.store) != weights(start.store));
  CHECK_THROWS_AS(train(cut, cut_folder.path(), false, 3), CancelledError);
  train(resumed, cut_folder.path(), true, 100);
  CHECK(weights(resumed.store) == weights(whole.store));
}
