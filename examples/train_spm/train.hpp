// SPDX-License-Identifier: MIT
// From a job to a step-aware preference model: encode, read the generator and the CLIP model, train, validate, export.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include <lpo/io/step_aware_preference_file.hpp>
#include <lpo/train/predicted_image_model.hpp>

#include "../common/console.hpp"
#include "../common/memory_plan.hpp"
#include "../common/options.hpp"
#include "../common/run_files.hpp"
#include "../common/run_report.hpp"
#include "../common/text_side.hpp"
#include "job.hpp"

namespace train_spm {

/// What predicts pictures, frozen.
template <const examples::ModelFamily& F>
struct Generator {
  examples::TextSide<F, float> text;
  lpo::UNet2DCondition<F.unet, float, Device> unet;
  lpo::AutoencoderKL<F.vae, float, Device> vae;
  lpo::ParameterStore<float, Device> store;

  explicit Generator(const Job& job) : text(job.model.tokenizers(F)) {
    text.add_to(store);
    store.add("unet", unet);
    store.add("vae", vae);
  }
  void read(const Job& job) {
    store.allocate_frozen();
    job.model.load_text_encoder(text.first, store, 0);
    if constexpr (F.two_text_encoders) job.model.load_text_encoder(*text.second, store, 1);
    job.model.load_unet(unet, store);
    job.model.load_vae(vae, store);
    lpo::expect_finite_weights(store, job.model.path());
  }
};

/// What rates them: drawn, a CLIP model's weights, or those of an earlier training.
template <const examples::ModelFamily& F>
struct Preference {
  using Model = lpo::StepAwarePreferenceModel<F.preference.vision, F.preference.text, float, Device>;
  Model model;
  lpo::ParameterStore<float, Device> store;

  Preference() { store.add("", model); }
  void read(const Job& job) {
    const Options& o = job.options;
    store.allocate([&](const std::string& name) {
      return !(o.freeze_text_model && (name.starts_with("text_model.") || name.starts_with("text_projection.")));
    });
    store.initialize(o.training.seed);
    model.vision.open_gates();
    if (!o.preference_model.empty())
      lpo::load_preference_model(o.preference_model, model, store);
    else if (!o.clip_model.empty())
      lpo::load_clip_model(o.clip_model, model, store);
    lpo::expect_finite_weights(store, o.preference_model.empty() ? o.clip_model : o.preference_model);
  }
};

/// Numbers that backward needs of a CLIP tower for one row of tokens, roughly: in a layer eleven widths (norms,
/// modulation, queries, keys, values, products, sums) and the feed-forward's hidden values twice; with gradient
/// checkpointing (`few`) a width a layer, and one layer.
template <class Tower>
double tower_activations(const Tower& tower, double tokens, bool few) {
  const double layer = 11.0 * tower.width + 2.0 * tower.hidden, layers = tower.layers;
  return tokens * (few ? layers * tower.width + layer : layers * layer);
}

template <const examples::ModelFamily& F>
void print_plan(const Job& job) {
  const Options& o = job.options;
  const auto& t = o.training;
  const auto generator = std::make_unique<Generator<F>>(job);
  const auto preference = std::make_unique<Preference<F>>();
  const int side = job.resolution / F.vae.factor();
  std::printf("generator    %s (%s), guidance %g\n", job.model.path().c_str(), F.name, o.guidance_scale);
  std::printf("starts from  %s\n", !o.preference_model.empty() ? o.preference_model.c_str()
                                   : !o.clip_model.empty()     ? o.clip_model.c_str()
                                                               : "random weights");
  std::printf("train        %s\n", examples::data_text(job.train).c_str());
  std::printf("validation   %s\n", o.validation_pairs > 0 ? lpo::message(o.validation_pairs, " pairs held out").c_str()
                                                          : examples::data_text(job.validation).c_str());
  std::printf("size         %d x %d, rated at %d x %d\n", job.resolution, job.resolution,
              F.preference.vision.image_size, F.preference.vision.image_size);
  examples::print_device_options(o.device);
  std::printf("steps        %lld of %lld pairs, %lld at once, learning rate %g\n",
              static_cast<long long>(t.max_train_steps), static_cast<long long>(t.train_batch_size),
              static_cast<long long>(t.micro_batch_size > 0 ? t.micro_batch_size : t.train_batch_size),
              t.learning_rate);
  const auto numbers = [](const auto& store) {
    double sum = 0;
    for (const auto& entry : store.entries()) sum += static_cast<double>(entry.parameter->size());
    return sum;
  };
  const double trained = numbers(preference->store), frozen = numbers(generator->store);
  const double copies = 5 + (t.ema_decay > 0 ? 1 : 0);  // weight, gradient, two moments, the best so far
  const double packed = examples::packed_number_bytes(sizeof(float), false, o.device) * frozen;
  const double weights = 4 * (copies * trained + frozen) + packed;
  std::printf("weights      %.1f million trained, %.1f million frozen: %s with gradients and moments\n", trained / 1e6,
              frozen / 1e6, examples::memory_text(weights).c_str());
  const double rows = o.guidance_scale == 1 ? 1 : 2;
  const double at_once = static_cast<double>(t.micro_batch_size > 0 ? t.micro_batch_size : t.train_batch_size);
  const double predicting = 4 * (examples::unet_activations(F.unet, rows * 2 * at_once, side, side) +
                                 examples::vae_activations(F.vae, job.resolution, job.resolution));
  constexpr auto vision = F.preference.vision;
  constexpr double patches = vision.image_size / vision.patch * (vision.image_size / vision.patch) + 1;
  const bool few = t.gradient_checkpointing;
  const double rating = 4 * at_once * (2 * tower_activations(vision, patches, few) +
                                       tower_activations(F.preference.text, F.preference.text.positions, few));
  std::printf("activations  about %s predicting, %s rating (%.0f pictures)\n",
              examples::memory_text(predicting).c_str(), examples::memory_text(rating).c_str(), 2 * at_once);
  examples::print_memory(weights + std::max(predicting, rating));

  const double pairs = static_cast<double>(t.train_batch_size);
  const auto unet = examples::unet_work(F.unet, side, side, F.text.positions);
  // Decoding is about 2.25 times encoding; the towers' share is small.
  const double step =
      pairs * 2 * (rows * unet.total() + 2.25 * examples::vae_encoder_work(F.vae, job.resolution, job.resolution));
  auto context = examples::make_context(o.threads, o.device, job.processes);
  const double seconds = step / examples::measured_rate<float>(context);
  std::printf("time         at least %.2f s a step for the pictures, %s in all\n", seconds,
              examples::clock_text(seconds * static_cast<double>(t.max_train_steps)).c_str());
}

inline void write_report(const Job& job, const lpo::LrmTrainerReport& training,
                         const std::vector<lpo::TimestepAccuracy>& accuracy, const std::string& end) {
  const std::string& folder = job.options.output_dir;
  const std::string log = folder + "/metrics.jsonl";
  if (!lpo::file_exists(log)) return;  // it ended before it began
  examples::RunReport report;
  report.over = "Step-aware preference model · " + job.model.name();
  report.title = "SPM " + end;
  report.lead = lpo::message(training.steps, " of ", job.options.training.max_train_steps,
                             " steps on pictures that the generator predicts from noisy latents.");
  report.tiles = {
      {examples::last_metric(log, "train_loss"), "loss", "of the last step"},
      {examples::last_metric(log, "validation_accuracy"), "validation accuracy", "at the validation timestep"},
      {examples::last_metric(log, "skipped_steps", 0), "steps left out", "gradients were not finite"}};
  examples::ReportSection section{"Training", "", {}, {}};
  section.cards = {
      examples::metric_card(log, "train_loss", "Pair loss", "ln 2 is guessing.", "step", {{0.693147, "ln 2"}}),
      examples::metric_card(log, "implicit_acc", "Accuracy of the batches", "", "step", {{0.5, "guessing"}}, true),
      examples::metric_card(log, "validation_accuracy", "Validation accuracy", "", "step", {{0.5, "guessing"}}, true)};
  report.sections.push_back(std::move(section));
  report.facts = examples::settings_facts(job.settings);
  for (const auto& [timestep, interval] : accuracy)
    report.facts.emplace_back(lpo::message("accuracy at timestep ", timestep),
                              examples::fixed_text(100 * interval.accuracy, 1) + " %");
  report.command = job.command;
  report.version = LPO_VERSION_STRING;
  examples::write_report_page(folder + "/report.html", report);
}

template <const examples::ModelFamily& F>
int train_and_export(const Job& job) {
  const Options& o = job.options;
  auto context = examples::make_context(o.threads, o.device, job.processes);
  const std::string train_cache = o.cache_dir + "/train", validation_cache = o.cache_dir + "/validation";
  examples::on_first(job.processes, [&] {
    lpo::Tape<Device> tape(context);
    if (job.train.has_pictures())
      examples::print_counts(examples::encode_data_set<F>(job.training_pairs(), tape, job.train, train_cache),
                             job.training_pairs());
    if (job.validation.has_pictures())
      examples::encode_data_set<F>(job.validation_pairs(), tape, job.validation, validation_cache);
  });

  const auto generator = std::make_unique<Generator<F>>(job);
  const auto preference = std::make_unique<Preference<F>>();
  std::fprintf(stderr, "reading %s\n", job.model.path().c_str());
  generator->read(job);
  preference->read(job);
  const auto packed = examples::keep_packed(context, generator->store, o.device);
  const auto tokenize = [&](const std::string& caption) { return generator->text.ids(caption); };
  auto pairs = examples::load_pairs<F>(job.training_pairs(), job.train, train_cache, tokenize);
  lpo::LatentPairs validation;
  if (job.validation.kind != DataSet::Kind::none)
    validation = examples::load_pairs<F>(job.validation_pairs(), job.validation, validation_cache, tokenize);
  if (o.validation_pairs > 0) validation = lpo::hold_out_pairs(pairs, o.validation_pairs);
  examples::note_large_step(o.training.train_batch_size, pairs.size(), "--train_batch_size");

  const lpo::NoiseSchedule schedule(job.model.has_scheduler() ? job.model.scheduler() : lpo::SchedulerConfig{});
  const auto empty = job.model.zeros_for_empty_prompt() ? lpo::EmptyPrompt::zeros : lpo::EmptyPrompt::encoded;
  auto generator_text = generator->text.encoder("", empty, job.resolution, job.resolution);
  lpo::PredictedImageModel model(generator->unet, generator->vae, preference->model, schedule, o.guidance_scale);
  lpo::PreferenceTextEncoder text(generator_text, preference->model);
  std::unique_ptr<examples::EventWriter> events;
  lpo::LrmTrainerOptions options = o.training;
  options.title = "SPM training";
  options.more_settings = {{"resolution", lpo::message(job.resolution)},
                           {"model_weights", examples::weights_mark(job.model.weights("unet", F))}};
  options.on_metrics = [&](index_t step, const lpo::MetricValues& values) { events->scalars(step, values); };
  lpo::LrmTrainer trainer(context, model, text, preference->store, schedule, options,
                          examples::make_ranks(context, job.processes));
  examples::ProgressBar bar;
  bool began = false;
  const auto progress = [&](const lpo::Progress& p) {
    if (job.processes.first() && !events) events = examples::begin_run_files(o.output_dir, job.settings, p.first_step);
    began = true;
    return bar(p);
  };
  lpo::LrmTrainerReport training;
  std::string failure;
  try {
    training = trainer.train(pairs, validation, progress);
  } catch (const lpo::ValueError& error) {  // steps without finite gradients: the weights are the last good ones
    if (!began) throw;
    failure = error.what();
  } catch (const lpo::CancelledError&) {
    if (job.processes.first()) write_report(job, training, {}, "stopped");
    throw;
  }
  std::vector<lpo::TimestepAccuracy> accuracy;
  if (validation.size() > 0) accuracy = trainer.accuracy_by_timestep(validation, o.validation_timesteps);
  if (!job.processes.first()) return failure.empty() ? 0 : 1;
  if (const std::string name = lpo::first_non_finite_weight(preference->store); !name.empty()) {
    write_report(job, training, accuracy, "stopped");
    throw lpo::ValueError(lpo::message("[train_spm] ", failure, failure.empty() ? "" : "; ", "the weight \"", name,
                                       "\" holds NaN or an infinity, and nothing was exported"));
  }
  const lpo::DType dtype = examples::dtype_of(o.save_dtype).value();
  const auto save = [&](const std::string& folder) {
    lpo::save_preference_model(folder, preference->model, preference->store, dtype);
    std::printf("%s\n", folder.c_str());
  };
  save(o.output_dir + "/spm-last");
  if (trainer.use_best_weights()) save(o.output_dir + "/spm-best");
  write_report(job, training, accuracy, failure.empty() ? "finished" : "stopped");
  std::printf("%s/report.html\n", o.output_dir.c_str());
  if (failure.empty()) return 0;
  std::fprintf(stderr, "train_spm: error: %s\n", failure.c_str());
  return 1;
}

template <const examples::ModelFamily& F>
int train(const Job& job) {
  const Options& o = job.options;
  const auto plan = [&] { print_plan<F>(job); };
  int status = 0;
  if (o.dry_run)
    plan();
  else
    examples::run_within_memory([&] { status = train_and_export<F>(job); }, plan);
  return status;
}

}  // namespace train_spm
