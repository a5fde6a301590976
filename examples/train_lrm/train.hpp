// SPDX-License-Identifier: MIT
// From a job to a reward model of one family: encode, read the base model, train, validate, export.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/latent_reward_folder.hpp>

#include "../common/console.hpp"
#include "../common/options.hpp"
#include "../common/run_files.hpp"
#include "../common/text_side.hpp"
#include "plan.hpp"
#include "report.hpp"

namespace train_lrm {

/// Half the base model's UNet and its text encoders, with the projections: drawn, or of an earlier reward model.
template <const examples::ModelFamily& F>
struct RewardModel {
  static constexpr bool sdxl = F.two_text_encoders;
  static constexpr int text_width = sdxl ? F.text_2.projection : F.text.width;
  using Lrm = lpo::LatentRewardModel<F.unet, text_width, F.reward_width, !sdxl, float, Device>;
  using Text = examples::TextSide<F, float>;

  Lrm lrm;
  Text text;
  lpo::ParameterStore<float, Device> store;

  explicit RewardModel(const Job& job) : text(job.model.tokenizers(F)) {
    const Options& o = job.options;
    lrm.use_features(o.features);
    store.add("", lrm);
    text.add_to(store);
    store.allocate(
        [&](const std::string& name) { return !(o.freeze_text_encoder && name.starts_with("text_encoder")); });
    store.initialize(o.training.seed);
    if (!o.lrm.empty()) {
      if constexpr (sdxl)
        lpo::load_latent_reward_model(o.lrm, lrm, store, std::tie(text.first, *text.second));
      else
        lpo::load_latent_reward_model(o.lrm, lrm, store, std::tie(text.first));
      lpo::expect_finite_weights(store, o.lrm);
      return;
    }
    job.model.load_unet(lrm.unet, store);
    job.model.load_text_encoder(text.first, store, 0);
    if (text.second) job.model.load_text_encoder(*text.second, store, 1);
    if (!o.text_projection.empty()) read_text_projection(o.text_projection);
    lpo::expect_finite_weights(store, job.model.path());
  }

  void read_text_projection(const std::string& path) {
    if constexpr (sdxl) {
      throw lpo::ValueError(
          "[train_lrm] --text_projection: reward models of SDXL have none; their second text encoder has its own");
    } else {
      const auto file = lpo::open_tensor_file(path);
      std::vector<float> values(static_cast<std::size_t>(F.reward_width) * text_width);
      file.read("text_projection.weight", values.data(), std::vector<index_t>{F.reward_width, text_width});
      lpo::DeviceMemory<Device>::copy_from_host(lrm.text_projection.weight.data(), values.data(), values.size() * sizeof(float));
    }
  }

  auto encoder(int resolution) {
    if constexpr (sdxl)
      return lpo::SdxlTextEncoder<typename Text::First, typename Text::Second>(
          text.first, *text.second, text.ids(""), lpo::sdxl_time_ids(resolution, resolution),
          lpo::EmptyPrompt::encoded);
    else
      return lpo::ClipTextEncoder<typename Text::First>(text.first, text.ids(""));
  }

  /// The released layout, with the tokenizers beside it.
  void save(const std::string& folder, lpo::DType dtype) {
    lpo::make_directories(folder);
    if constexpr (sdxl)
      lpo::save_latent_reward_model(folder, lrm, store, std::tie(text.first, *text.second), "", dtype);
    else
      lpo::save_latent_reward_model(folder, lrm, store, std::tie(text.first), "", dtype);
    text.tokenizers[0].save(folder + "/tokenizer");
    if (text.second) text.tokenizers[1].save(folder + "/tokenizer_2");
    std::printf("%s\n", folder.c_str());
  }
};

template <const examples::ModelFamily& F>
int train_and_export(const Job& job) {
  const Options& o = job.options;
  const auto begin = std::chrono::steady_clock::now();
  auto context = examples::make_context(o.threads, o.device, job.processes);
  Results results;
  const std::string train_cache = o.cache_dir + "/train", validation_cache = o.cache_dir + "/validation";
  examples::on_first(job.processes, [&] {
    lpo::Tape<Device> tape(context);
    if (job.train.has_pictures()) {
      results.data = examples::encode_data_set<F>(job.training_pairs(), tape, job.train, train_cache);
      examples::print_counts(results.data, job.training_pairs());
    }
    if (job.validation.has_pictures())
      examples::encode_data_set<F>(job.validation_pairs(), tape, job.validation, validation_cache);
  });
  if (o.encode_only) return 0;

  std::fprintf(stderr, "reading %s\n", job.model.path().c_str());
  const auto reward = std::make_unique<RewardModel<F>>(job);
  const auto packed = examples::keep_packed(context, reward->store, o.device);
  const auto tokenize = [&](const std::string& caption) { return reward->text.ids(caption); };
  auto pairs = examples::load_pairs<F>(job.training_pairs(), job.train, train_cache, tokenize);
  lpo::LatentPairs validation;
  if (job.validation.kind != DataSet::Kind::none)
    validation = examples::load_pairs<F>(job.validation_pairs(), job.validation, validation_cache, tokenize);
  if (o.validation_pairs > 0) validation = lpo::hold_out_pairs(pairs, o.validation_pairs);
  if (o.training.batch_unit == lpo::BatchUnit::pair)
    examples::note_large_step(o.training.train_batch_size, pairs.size(), "--train_batch_size");
  results.pairs = pairs.size();
  results.images = examples::pictures_of(pairs);
  results.validation_pairs = validation.size();

  const lpo::NoiseSchedule schedule(job.model.has_scheduler() ? job.model.scheduler() : lpo::SchedulerConfig{});
  auto encoder = reward->encoder(job.resolution);
  std::unique_ptr<examples::EventWriter> events;
  lpo::LrmTrainerOptions options = o.training;
  options.more_settings = {{"resolution", lpo::message(job.resolution)},
                           {"model_weights", examples::weights_mark(job.model.weights("unet", F))}};
  options.on_metrics = [&](index_t step, const lpo::MetricValues& values) { events->scalars(step, values); };
  lpo::LrmTrainer trainer(context, reward->lrm, encoder, reward->store, schedule, options,
                          examples::make_ranks(context, job.processes));
  examples::ProgressBar bar;
  bool began = false;
  const auto progress = [&](const lpo::Progress& p) {
    if (job.processes.first() && !events) events = examples::begin_run_files(o.output_dir, job.settings, p.first_step);
    began = true;
    return bar(p);
  };
  const auto report = [&] {
    if (!job.processes.first()) return;
    results.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    write_report(o.output_dir + "/report.html", job, F, results);
  };
  try {
    results.training = trainer.train(pairs, validation, progress);
  } catch (const lpo::ValueError& error) {  // steps without finite gradients: the weights are the last good ones
    if (!began) throw;
    results.failure = error.what();
  } catch (const lpo::CancelledError& error) {
    results.failure = error.what();
    report();
    throw;
  }
  if (validation.size() > 0) results.accuracy = trainer.accuracy_by_timestep(validation, o.validation_timesteps);
  if (!job.processes.first()) return results.failure.empty() ? 0 : 1;

  if (const std::string name = lpo::first_non_finite_weight(reward->store); !name.empty()) {
    report();
    throw lpo::ValueError(lpo::message("[train_lrm] ", results.failure, results.failure.empty() ? "" : "; ", "the weight \"",
                                       name, "\" holds NaN or an infinity, and nothing was exported"));
  }
  const lpo::DType dtype = examples::dtype_of(o.save_dtype).value();
  reward->save(o.output_dir + "/lrm-last", dtype);
  if (trainer.use_best_weights()) reward->save(o.output_dir + "/lrm-best", dtype);
  if (!results.accuracy.empty()) write_validation(o.output_dir + "/validation.json", results);
  report();
  std::printf("%s/report.html\n", o.output_dir.c_str());
  if (results.failure.empty()) return 0;
  std::fprintf(stderr, "train_lrm: error: %s\n", results.failure.c_str());
  return 1;
}

template <const examples::ModelFamily& F>
int train(const Job& job) {
  const Options& o = job.options;
  const auto plan = [&] { print_plan(job, F); };
  int status = 0;
  if (o.dry_run)
    plan();
  else
    examples::run_within_memory([&] { status = train_and_export<F>(job); }, plan);
  return status;
}

}  // namespace train_lrm
