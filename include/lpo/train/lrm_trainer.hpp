// SPDX-License-Identifier: MIT
// LrmTrainer: trains a latent reward model on preference pairs of latents, noised to a shared random timestep.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <lpo/autograd/embedding.hpp>
#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/optim/adamw.hpp>
#include <lpo/optim/clip.hpp>
#include <lpo/optim/ema.hpp>
#include <lpo/optim/schedule.hpp>
#include <lpo/reward/latent_reward_model.hpp>
#include <lpo/reward/loss.hpp>
#include <lpo/train/latent_pairs.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/progress.hpp>
#include <lpo/train/text_states.hpp>
#include <lpo/train/training_checkpoint.hpp>

namespace lpo::inline LPO_ABI {

/// Defaults are LRM-1.5's of lpo-method B3-B5; option names are the method's.
struct LrmTrainerOptions {
  index_t max_train_steps = 4000;
  index_t train_batch_size = 128;  ///< pairs, or prompts when they are the unit of a batch
  BatchUnit batch_unit = BatchUnit::pair;
  double learning_rate = 1e-5;
  index_t lr_warmup_steps = 500;
  LearningRateKind lr_scheduler = LearningRateKind::log_warmup_decay;
  FirstStepRate lr_first_step = FirstStepRate::zero;
  AdamWOptions optimizer{.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.3};
  double max_grad_norm = 1.0;  ///< 0 turns clipping off; the norm is logged either way
  double ema_decay = 0;        ///< > 0: validate and export an exponential moving average of the weights
  RewardLossOptions loss;
  bool shared_pair_noise = false;  ///< pair_noise = independent | shared (by all images of a batch unit)
  int timestep_interval = 50;
  int largest_timestep = 951;  ///< candidates are 1, 1 + interval, ..., largest
  int validation_timestep = 1;
  index_t validation_steps = 100;  ///< validate every so many steps; 0 = at the end only
  index_t checkpointing_steps = 0;  ///< 0 = no checkpoints
  int checkpoints_total_limit = 2;
  enum class Export { last, best } export_weights = Export::last;
  std::uint64_t seed = 42;
  std::string output_dir;  ///< checkpoints and metrics.jsonl; empty = nothing is written
  bool resume = false;     ///< continue from the newest checkpoint in output_dir
};

/// Result of a training run.
struct LrmTrainerReport {
  index_t steps = 0;
  double final_loss = 0;
  double validation_accuracy = 0;       ///< of the exported weights
  double best_validation_accuracy = 0;
  index_t best_step = 0;
};

/// Trains `lrm` (and whatever of `text_encoder` the store holds as trainable). One object per run.
template <class Lrm, class TextEncoder>
class LrmTrainer {
 public:
  using T = typename Lrm::value_type;
  using Device = typename Lrm::device;

  LrmTrainer(Context<Device>& context, Lrm& lrm, TextEncoder& text_encoder, ParameterStore<T, Device>& store,
             const NoiseSchedule& schedule, LrmTrainerOptions options)
      : context_(context), lrm_(lrm), text_(text_encoder), store_(store), schedule_(schedule), options_(std::move(options)),
        tape_(context),
        optimizer_(context, {{store.trainable_values(), store.trainable_gradients(), store.trainable_size()}}, options_.optimizer),
        average_(context, optimizer_.spans(), options_.ema_decay, true) {
    if (options_.train_batch_size < 1 || options_.max_train_steps < 0)
      throw ValueError("[LrmTrainer] train_batch_size must be at least 1 and max_train_steps at least 0");
    if (options_.batch_unit == BatchUnit::prompt && options_.loss.kind != RewardLossOptions::Kind::pair)
      throw ValueError("[LrmTrainer] the contrastive loss needs distinct prompts in a batch; use batch_unit = pair with it");
    if (options_.timestep_interval < 1 || options_.largest_timestep < 1 || options_.largest_timestep >= schedule.train_timesteps())
      throw ValueError(message("[LrmTrainer] timesteps 1, 1 + ", options_.timestep_interval, ", ..., ", options_.largest_timestep,
                               " must lie inside the schedule of ", schedule.train_timesteps()));
    if (store.trainable_size() == 0) throw ValueError("[LrmTrainer] the store has no trainable weights");
  }

  /// Runs to max_train_steps. The same seed and data give the same bits, with or without an interruption in between.
  LrmTrainerReport train(const LatentPairs& pairs, const LatentPairs& validation, const ProgressCallback& progress = {}) {
    pairs.check();
    validation.check();
    const CheckpointFolder folder(options_.output_dir, options_.checkpoints_total_limit);
    std::vector<float> best_values(static_cast<std::size_t>(store_.trainable_size()));
    std::vector<float> best{0.0f, -1.0f};  // step, accuracy
    TrainingState state = training_state(best_values, best);
    if (options_.resume && !options_.output_dir.empty() && folder.resume(state)) {
      optimizer_.set_step_count(state.step);
      average_.set_updates(state.step);
    }
    if (!options_.output_dir.empty()) make_directories(options_.output_dir);
    MetricsLog log(options_.output_dir.empty() ? "" : options_.output_dir + "/metrics.jsonl", state.step);
    ProgressReporter reporter("LRM training", state.step, options_.max_train_steps, progress);
    const auto units = batch_units(pairs, options_.batch_unit);
    BatchOrder order(options_.seed, operation_order, static_cast<index_t>(units.size()), options_.train_batch_size);
    LrmTrainerReport report;
    double smoothed = 0, accuracy_now = -1;
    const bool validates = validation.size() > 0;

    while (state.step < options_.max_train_steps) {
      const auto [loss, norm, rate] = step(pairs, units, order.at(state.step), state.step);
      ++state.step;
      report.final_loss = loss;
      smoothed = smoothed == 0 ? loss : 0.95 * smoothed + 0.05 * loss;
      MetricValues metrics{{"train_loss", loss}, {"grad_norm", norm}, {"lr", rate}};
      const bool last = state.step == options_.max_train_steps;
      if (validates && (last || (options_.validation_steps > 0 && state.step % options_.validation_steps == 0))) {
        swap_average();
        accuracy_now = accuracy(validation, options_.validation_timestep);
        metrics.emplace_back("validation_accuracy", accuracy_now);
        if (accuracy_now > static_cast<double>(best[1])) {
          best = {static_cast<float>(state.step), static_cast<float>(accuracy_now)};
          context_.copy_to_host(best_values.data(), store_.trainable_values(), best_values.size() * sizeof(float));
        }
        swap_average();
      }
      log.write(state.step - 1, metrics);
      if (options_.checkpointing_steps > 0 && !options_.output_dir.empty() && state.step % options_.checkpointing_steps == 0)
        folder.save(state);
      MetricValues shown{{"loss", smoothed}};
      if (accuracy_now >= 0) shown.emplace_back("accuracy", accuracy_now);
      if (!reporter.report(state.step, std::move(shown))) {
        if (!options_.output_dir.empty()) folder.save(state);
        throw CancelledError(message("[LrmTrainer] cancelled after step ", state.step, " of ", options_.max_train_steps));
      }
    }
    report.steps = state.step;
    report.best_step = static_cast<index_t>(best[0]);
    report.best_validation_accuracy = std::max(0.0, static_cast<double>(best[1]));
    if (options_.export_weights == LrmTrainerOptions::Export::best && best[1] >= 0)
      context_.copy_from_host(store_.trainable_values(), best_values.data(), best_values.size() * sizeof(float));
    else
      swap_average();
    if (validates) report.validation_accuracy = accuracy(validation, options_.validation_timestep);
    return report;
  }

  /// Validation accuracy at one timestep (lpo-method B5), with noise that depends on the seed and the pair only.
  double accuracy(const LatentPairs& pairs, int timestep) {
    const auto [first, second] = scores(pairs, timestep);
    return pair_accuracy(first, second, pairs.labels);
  }

  /// Scores of both images of every pair, noised to `timestep`; each image is run once.
  std::pair<std::vector<float>, std::vector<float>> scores(const LatentPairs& data, int timestep) {
    std::vector<float> by_image;
    const auto guard = tape_.inference();
    for (index_t begin = 0; begin < data.images(); begin += options_.train_batch_size) {
      Batch batch;
      for (index_t i = begin; i < std::min(data.images(), begin + options_.train_batch_size); ++i) {
        add_prompt(batch, data, data.prompt_of_image[static_cast<std::size_t>(i)]);
        add_image(batch, i, timestep);
      }
      noise(batch, data, operation_validation, static_cast<std::uint32_t>(begin), false);
      const auto [visual, text] = forward_features(batch);
      const auto z = cosine_score(visual, text, lrm_.logit_scale.on(tape_));
      std::vector<compute_t<T>> host(static_cast<std::size_t>(z.extent(0)));
      context_.copy_to_host(host.data(), z.data(), host.size() * sizeof(host.front()));
      for (const auto score : host) by_image.push_back(static_cast<float>(score));
      tape_.clear();
    }
    std::vector<float> first, second;
    for (const auto& pair : data.pairs) {
      first.push_back(by_image[static_cast<std::size_t>(pair.first)]);
      second.push_back(by_image[static_cast<std::size_t>(pair.second)]);
    }
    return {first, second};
  }

 private:
  static constexpr std::uint32_t operation_order = 0x2001, operation_timestep = 0x2002, operation_noise = 0x2003,
                                 operation_posterior = 0x2004, operation_validation = 0x2005;

  /// One batch on the host. Rows of prompts and images are in the order of the batch units.
  struct Batch {
    std::vector<std::int32_t> token_ids;  ///< [prompts, tokens]
    std::vector<index_t> images;          ///< numbers in the data set [images]
    std::vector<std::int32_t> prompt_of_image;
    std::vector<float> timesteps;   ///< [images]
    std::vector<std::int32_t> first, second, prompt_of_pair;  ///< rows of images and prompts [pairs]
    std::vector<PreferenceLabel> labels;
    Tensor<T, 4, Device> latents;  ///< noisy [images, h, w, c]
    index_t prompts = 0;
  };

  struct StepResult {
    double loss, norm, rate;
  };

  TrainingState training_state(std::vector<float>& best_values, std::vector<float>& best) {
    static_assert(std::is_same_v<T, float>, "lpo LrmTrainer: training weights are float");
    TrainingState state;
    auto& s = state.settings;
    s["trainer"] = "lrm";
    s["seed"] = options_.seed;
    s["train_batch_size"] = options_.train_batch_size;
    s["batch_unit"] = options_.batch_unit == BatchUnit::pair ? "pair" : "prompt";
    s["learning_rate"] = options_.learning_rate;
    s["lr_warmup_steps"] = options_.lr_warmup_steps;
    s["max_train_steps"] = options_.max_train_steps;
    s["weight_decay"] = options_.optimizer.weight_decay;
    s["max_grad_norm"] = options_.max_grad_norm;
    s["ema_decay"] = options_.ema_decay;
    const auto count = static_cast<std::size_t>(store_.trainable_size());
    state.buffers = {device_buffer<Device>("weights", store_.trainable_values(), count),
                     device_buffer<Device>("first_moment", optimizer_.first_moment().data, count),
                     device_buffer<Device>("second_moment", optimizer_.second_moment().data, count),
                     device_buffer<Device>("average", average_.average().data, options_.ema_decay > 0 ? count : 0),
                     {"best_weights", best_values},
                     {"best", best}};
    return state;
  }

  StepResult step(const LatentPairs& data, const std::vector<std::vector<index_t>>& units, const std::vector<index_t>& picked,
                  index_t step_index) {
    const auto counter = static_cast<std::uint32_t>(step_index);
    RandomStream random(options_.seed, operation_timestep, counter);
    const auto candidates = static_cast<std::uint32_t>((options_.largest_timestep - 1) / options_.timestep_interval + 1);
    Batch batch;
    for (const index_t unit : picked)
      add_unit(batch, data, units[static_cast<std::size_t>(unit)],
               1 + options_.timestep_interval * static_cast<int>(random.uniform_int(candidates)));
    noise(batch, data, operation_noise, counter, options_.shared_pair_noise);
    store_.reset_gradients();
    const auto [visual, text] = forward_features(batch);
    const auto loss = reward_loss(embedding(visual, batch.first), embedding(visual, batch.second), embedding(text, batch.prompt_of_pair),
                                  lrm_.logit_scale.on(tape_), batch.labels, options_.loss);
    StepResult result{};
    result.loss = item(loss);
    backward(loss);
    store_.finish_gradients();
    tape_.clear();
    result.norm = global_gradient_norm(context_, optimizer_.spans());
    const LearningRateSchedule rates{options_.lr_scheduler, options_.learning_rate, options_.lr_warmup_steps,
                                     options_.max_train_steps, options_.lr_first_step};
    result.rate = rates(step_index);
    if (std::isfinite(result.norm)) optimizer_.step(result.rate, clip_scale(result.norm, options_.max_grad_norm));
    if (options_.ema_decay > 0) average_.update();
    return result;
  }

  void swap_average() {
    if (options_.ema_decay > 0) average_.swap();
  }

  static void add_prompt(Batch& batch, const LatentPairs& data, index_t prompt) {
    const auto* ids = data.token_ids.data() + prompt * data.tokens;
    batch.token_ids.insert(batch.token_ids.end(), ids, ids + data.tokens);
    ++batch.prompts;
  }

  /// Adds an image of the newest prompt.
  static void add_image(Batch& batch, index_t image, int timestep) {
    batch.images.push_back(image);
    batch.prompt_of_image.push_back(static_cast<std::int32_t>(batch.prompts - 1));
    batch.timesteps.push_back(static_cast<float>(timestep));
  }

  /// Adds pairs of one prompt; an image that occurs in several of them gets one row.
  static void add_unit(Batch& batch, const LatentPairs& data, const std::vector<index_t>& pairs, int timestep) {
    add_prompt(batch, data, data.prompt_of(data.pairs[static_cast<std::size_t>(pairs.front())]));
    const auto begin = static_cast<std::ptrdiff_t>(batch.images.size());
    const auto row_of = [&](index_t image) {
      const auto found = std::find(batch.images.begin() + begin, batch.images.end(), image);
      const auto row = static_cast<std::int32_t>(found - batch.images.begin());
      if (found == batch.images.end()) add_image(batch, image, timestep);
      return row;
    };
    for (const index_t i : pairs) {
      const auto& pair = data.pairs[static_cast<std::size_t>(i)];
      batch.first.push_back(row_of(pair.first));
      batch.second.push_back(row_of(pair.second));
      batch.prompt_of_pair.push_back(static_cast<std::int32_t>(batch.prompts - 1));
      batch.labels.push_back(data.labels[static_cast<std::size_t>(i)]);
    }
  }

  /// Draws the clean latents from their posteriors and noises them: sqrt(abar) x_0 + sqrt(1 - abar) n, in float. With `shared`
  /// all images of a prompt get the noise of its first one.
  void noise(Batch& batch, const LatentPairs& data, std::uint32_t operation, std::uint32_t counter, bool shared) const {
    const auto rows = static_cast<index_t>(batch.images.size()), size = data.latent_size();
    std::vector<float> drawn(static_cast<std::size_t>(rows * size)), posterior(data.deviation.empty() ? 0 : drawn.size());
    philox_fill_normal({options_.seed, operation, counter}, drawn.data(), drawn.size());
    philox_fill_normal({options_.seed, operation ^ operation_posterior, counter}, posterior.data(), posterior.size());
    std::vector<float> noisy(drawn.size());
    index_t source = 0;
    for (index_t row = 0; row < rows; ++row) {
      const auto at = static_cast<std::size_t>(row);
      if (!shared || row == 0 || batch.prompt_of_image[at] != batch.prompt_of_image[at - 1]) source = row;
      const double abar = schedule_.alpha_bar(static_cast<int>(batch.timesteps[at]));
      const float signal = static_cast<float>(std::sqrt(abar)), spread = static_cast<float>(std::sqrt(1 - abar));
      const index_t image = batch.images[at] * size;
      for (index_t k = 0; k < size; ++k) {
        float clean = data.mean[static_cast<std::size_t>(image + k)];
        if (!posterior.empty())
          clean += data.deviation[static_cast<std::size_t>(image + k)] * posterior[static_cast<std::size_t>(row * size + k)];
        noisy[static_cast<std::size_t>(row * size + k)] = signal * clean + spread * drawn[static_cast<std::size_t>(source * size + k)];
      }
    }
    batch.latents = Tensor<T, 4, Device>::from(Extents<4>{rows, data.height, data.width, data.channels}, noisy);
  }

  /// Visual [images, width] and text [prompts, width] features.
  std::pair<Var<T, 2, Device>, Var<T, 2, Device>> forward_features(const Batch& batch) {
    const auto states = text_.encode(tape_, batch.token_ids, batch.prompts);
    const auto rows = static_cast<index_t>(batch.images.size()), tokens = states.context.extent(1), width = states.context.extent(2);
    RewardPrompt<T, Device> prompt;
    prompt.context = embedding(states.context.reshape(Extents<2>{batch.prompts, tokens * width}), batch.prompt_of_image)
                         .reshape(Extents<3>{rows, tokens, width});
    if (lrm_.options.guidance != 1.0f) prompt.context_empty = repeat_rows(text_.encode_empty(tape_).context, rows);
    const auto visual = lrm_.visual(constant(tape_, batch.latents), batch.timesteps, prompt);
    return {visual, lrm_.text(states.pooled)};
  }

  Context<Device>& context_;
  Lrm& lrm_;
  TextEncoder& text_;
  ParameterStore<T, Device>& store_;
  const NoiseSchedule& schedule_;
  LrmTrainerOptions options_;
  Tape<Device> tape_;
  AdamW<T, Device> optimizer_;
  Ema<T, Device> average_;
};

}  // namespace lpo::inline LPO_ABI
