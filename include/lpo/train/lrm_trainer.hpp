// SPDX-License-Identifier: MIT
// LrmTrainer: trains a latent reward model on preference pairs of latents, noised to a shared random timestep.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

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
  index_t train_batch_size = 128;  ///< pairs
  double learning_rate = 1e-5;
  index_t lr_warmup_steps = 500;
  LearningRateKind lr_scheduler = LearningRateKind::log_warmup_decay;
  FirstStepRate lr_first_step = FirstStepRate::zero;
  AdamWOptions optimizer{.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.3};
  double max_grad_norm = 1.0;  ///< 0 turns clipping off; the norm is logged either way
  double ema_decay = 0;        ///< > 0: validate and export an exponential moving average of the weights
  RewardLossOptions loss;
  bool shared_pair_noise = false;  ///< pair_noise = independent | shared
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
    BatchOrder order(options_.seed, operation_order, pairs.size(), options_.train_batch_size);
    LrmTrainerReport report;
    double smoothed = 0, accuracy_now = -1;
    const bool validates = validation.size() > 0;

    while (state.step < options_.max_train_steps) {
      const auto [loss, norm, rate] = step(pairs, order.at(state.step), state.step);
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
          std::copy_n(store_.trainable_values(), best_values.size(), best_values.begin());
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
      std::copy(best_values.begin(), best_values.end(), store_.trainable_values());
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

  /// Scores of both images of every pair, noised to `timestep`.
  std::pair<std::vector<float>, std::vector<float>> scores(const LatentPairs& pairs, int timestep) {
    std::vector<float> first, second;
    const auto guard = tape_.inference();
    for (index_t begin = 0; begin < pairs.size(); begin += options_.train_batch_size) {
      std::vector<index_t> rows;
      for (index_t i = begin; i < std::min(pairs.size(), begin + options_.train_batch_size); ++i) rows.push_back(i);
      const std::vector<int> timesteps(rows.size(), timestep);
      const auto batch = prepare(pairs, rows, timesteps, operation_validation, static_cast<std::uint32_t>(begin));
      const auto z = forward_scores(batch);
      for (index_t i = 0; i < static_cast<index_t>(rows.size()); ++i) {
        first.push_back(static_cast<float>(static_cast<compute_t<T>>(z.data()[i])));
        second.push_back(static_cast<float>(static_cast<compute_t<T>>(z.data()[static_cast<index_t>(rows.size()) + i])));
      }
      tape_.clear();
    }
    return {first, second};
  }

 private:
  static constexpr std::uint32_t operation_order = 0x2001, operation_timestep = 0x2002, operation_noise = 0x2003,
                                 operation_posterior = 0x2004, operation_validation = 0x2005;

  /// One batch on the host: images [img0 of all pairs, img1 of all pairs].
  struct Batch {
    Tensor<T, 4, Device> latents;  ///< noisy [2n, h, w, c]
    std::vector<float> timesteps;  ///< [2n]
    std::vector<std::int32_t> token_ids;  ///< [n, tokens]
    std::vector<PreferenceLabel> labels;
    index_t tokens = 0;
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
    s["learning_rate"] = options_.learning_rate;
    s["lr_warmup_steps"] = options_.lr_warmup_steps;
    s["max_train_steps"] = options_.max_train_steps;
    s["weight_decay"] = options_.optimizer.weight_decay;
    s["max_grad_norm"] = options_.max_grad_norm;
    s["ema_decay"] = options_.ema_decay;
    const auto count = static_cast<std::size_t>(store_.trainable_size());
    state.buffers = {{"weights", {store_.trainable_values(), count}},
                     {"first_moment", {optimizer_.first_moment().data, count}},
                     {"second_moment", {optimizer_.second_moment().data, count}},
                     {"average", {average_.average().data, options_.ema_decay > 0 ? count : 0}},
                     {"best_weights", best_values},
                     {"best", best}};
    return state;
  }

  StepResult step(const LatentPairs& pairs, const std::vector<index_t>& rows, index_t step_index) {
    RandomStream random(options_.seed, operation_timestep, static_cast<std::uint32_t>(step_index));
    const auto count = static_cast<std::uint32_t>((options_.largest_timestep - 1) / options_.timestep_interval + 1);
    std::vector<int> timesteps;
    for (std::size_t i = 0; i < rows.size(); ++i)
      timesteps.push_back(1 + options_.timestep_interval * static_cast<int>(random.uniform_int(count)));
    const auto batch = prepare(pairs, rows, timesteps, operation_noise, static_cast<std::uint32_t>(step_index));
    store_.reset_gradients();
    const auto [visual, text] = forward_features(batch);
    const index_t n = static_cast<index_t>(rows.size());
    const auto loss = reward_loss(visual.slice(0, 0, n), visual.slice(0, n, 2 * n), text, lrm_.logit_scale.on(tape_),
                                  batch.labels, options_.loss);
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

  Batch prepare(const LatentPairs& pairs, const std::vector<index_t>& rows, const std::vector<int>& timesteps,
                std::uint32_t operation, std::uint32_t step_index) {
    const index_t n = static_cast<index_t>(rows.size()), size = pairs.latent_size();
    Batch batch;
    batch.tokens = pairs.tokens;
    std::vector<float> clean(static_cast<std::size_t>(2 * n * size)), noise(clean.size());
    philox_fill_normal({options_.seed, operation, step_index}, noise.data(), noise.size());
    if (options_.shared_pair_noise) std::copy_n(noise.begin(), noise.size() / 2, noise.begin() + static_cast<std::ptrdiff_t>(noise.size() / 2));
    for (index_t i = 0; i < n; ++i) {
      for (index_t image = 0; image < 2; ++image) {
        const float* from = pairs.mean.data() + (rows[static_cast<std::size_t>(i)] * 2 + image) * size;
        std::copy_n(from, size, clean.begin() + (image * n + i) * size);
      }
      const auto* ids = pairs.token_ids.data() + rows[static_cast<std::size_t>(i)] * pairs.tokens;
      batch.token_ids.insert(batch.token_ids.end(), ids, ids + pairs.tokens);
      batch.labels.push_back(pairs.labels[static_cast<std::size_t>(rows[static_cast<std::size_t>(i)])]);
    }
    if (!pairs.deviation.empty()) {
      std::vector<float> draw(clean.size());
      philox_fill_normal({options_.seed, operation ^ operation_posterior, step_index}, draw.data(), draw.size());
      for (index_t i = 0; i < n; ++i)
        for (index_t image = 0; image < 2; ++image)
          for (index_t k = 0; k < size; ++k) {
            const auto at = static_cast<std::size_t>((image * n + i) * size + k);
            clean[at] += pairs.deviation[static_cast<std::size_t>((rows[static_cast<std::size_t>(i)] * 2 + image) * size + k)] * draw[at];
          }
    }
    batch.latents = Tensor<T, 4, Device>(Extents<4>{2 * n, pairs.height, pairs.width, pairs.channels});
    for (index_t image = 0; image < 2; ++image) {
      for (index_t i = 0; i < n; ++i) {
        const int t = timesteps[static_cast<std::size_t>(i)];
        const double abar = schedule_.alpha_bar(t);
        const float signal = static_cast<float>(std::sqrt(abar)), spread = static_cast<float>(std::sqrt(1 - abar));
        batch.timesteps.push_back(static_cast<float>(t));
        const index_t row = (image * n + i) * size;
        for (index_t k = 0; k < size; ++k)
          batch.latents.data()[row + k] = static_cast<T>(static_cast<compute_t<T>>(signal * clean[static_cast<std::size_t>(row + k)] + spread * noise[static_cast<std::size_t>(row + k)]));
      }
    }
    return batch;
  }

  /// Visual [2n, width] and text [n, width] features.
  std::pair<Var<T, 2, Device>, Var<T, 2, Device>> forward_features(const Batch& batch) {
    const index_t n = static_cast<index_t>(batch.labels.size());
    const auto states = text_.encode(tape_, batch.token_ids, n);
    RewardPrompt<T, Device> prompt;
    prompt.context = concat_batch(states.context, states.context);
    if (lrm_.options.guidance != 1.0f) {
      const auto empty = text_.encode_empty(tape_);
      prompt.context_empty = repeat_rows(empty.context, 2 * n);
    }
    const auto visual = lrm_.visual(constant(tape_, batch.latents), batch.timesteps, prompt);
    return {visual, lrm_.text(states.pooled)};
  }

  Var<T, 1, Device> forward_scores(const Batch& batch) {
    const auto [visual, text] = forward_features(batch);
    return cosine_score(visual, concat_batch(text, text), lrm_.logit_scale.on(tape_));
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
