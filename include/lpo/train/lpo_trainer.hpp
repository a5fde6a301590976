// SPDX-License-Identifier: MIT
// LpoTrainer: latent preference optimization — roll out, score with the LRM, train the policy's LoRA on the kept pairs.
#pragma once

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/diffusion/ddim.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/optim/adamw.hpp>
#include <lpo/optim/clip.hpp>
#include <lpo/optim/ema.hpp>
#include <lpo/optim/schedule.hpp>
#include <lpo/preference/lpo_loss.hpp>
#include <lpo/preference/rollout.hpp>
#include <lpo/preference/threshold.hpp>
#include <lpo/train/finite_guard.hpp>
#include <lpo/train/latent_pairs.hpp>
#include <lpo/train/latent_scorer.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/progress.hpp>
#include <lpo/train/text_states.hpp>
#include <lpo/train/training_checkpoint.hpp>

namespace lpo::inline LPO_ABI {

/// The parts of an iteration, in the order in which they begin. Denoising and scoring take turns, step by step;
/// reference, policy (forward and backward) and optimizer do so by mini-batches.
enum class LpoStage { text, denoising, scoring, reference, policy, optimizer };

/// Defaults are SD1.5's of lpo-method C and D; option names are the method's.
struct LpoTrainerOptions {
  index_t max_train_iterations = 1000;  ///< roll-outs
  index_t sample_batch_size = 5;        ///< prompts per roll-out
  index_t train_batch_size = 10;        ///< pairs per optimiser step
  index_t micro_batch_size = 0;         ///< pairs of one forward and backward; gradients add up to the batch's. 0 = all at once
  int sample_steps = 20;                ///< S
  double guidance_scale = 5.0;          ///< in sampling and training
  double eta = 1.0;
  RolloutOptions rollout;
  ThresholdOptions threshold;
  double threshold_quantile = 0;     ///< > 0: fit threshold.minimum and maximum to this quantile of the gaps before training
  int calibration_rollouts = 2;      ///< roll-outs of the reference model that this takes
  LpoLossOptions loss;
  double learning_rate = 6e-5;
  LearningRateKind lr_scheduler = LearningRateKind::constant;
  index_t lr_warmup_steps = 0;  ///< optimiser steps
  AdamWOptions optimizer{.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 1e-4};
  double ema_decay = 0;        ///< > 0: keep an exponential moving average of the trained weights beside them
  int max_skipped_steps = 10;  ///< stop after so many steps in a row without finite gradients (FiniteGuard); 0 = never
  bool gradient_checkpointing = false;
  bool small_bucket_includes_t1 = true;  ///< in the log; see kept_buckets
  double loss_scale = 1;        ///< multiplies gradients on their way; for half, which has no numbers below 6e-8. A power of two
  double max_grad_norm = 0;     ///< 0 = off, what the released code really does; the norm is logged either way
  index_t max_rows = 0;         ///< rows of one scoring pass; 0 = all candidates at once
  double max_seconds = 0;       ///< stop after this much time and report it; 0 = no limit (a limit gives up reproducibility)
  index_t checkpointing_iterations = 0;
  int checkpoints_total_limit = 2;
  std::uint64_t seed = 42;
  std::string output_dir;
  bool resume = false;
  /// Called after each iteration with its line of the log.
  std::function<void(index_t iteration, const MetricValues&)> on_metrics;
  /// Adds files of its own to a checkpoint's folder.
  std::function<void(const std::string& folder)> checkpoint_files;
  /// Called when a part begins; on a device, work called before may still run.
  std::function<void(LpoStage)> on_stage;
};

/// Prompts as token ids, for the policy's text encoder and for the reward model's own.
struct PromptTokens {
  index_t tokens = 0;
  std::vector<std::int32_t> ids;         ///< [count, tokens]
  index_t reward_tokens = 0;
  std::vector<std::int32_t> reward_ids;  ///< [count, reward_tokens]

  index_t size() const { return tokens > 0 ? static_cast<index_t>(ids.size()) / tokens : 0; }
};

/// What a run did. `kept_per_step[i]` counts pairs kept at sampling step i, `drawn_per_step` those looked at.
struct LpoTrainerReport {
  index_t iterations = 0;
  index_t optimizer_steps = 0;
  index_t pairs = 0;
  index_t skipped_steps = 0;  ///< optimiser steps left out because gradients were not finite
  bool time_limit_reached = false;
  std::vector<int> timesteps;
  std::vector<double> thresholds;
  std::vector<double> kept_per_step, drawn_per_step;
};

/// One object per run. The policy's store must hold trainable weights (its LoRA, or all of it), with the values to
/// start from; with LoRA the reference is the same UNet with adapters off. Without any LoRA, pass a frozen copy through
/// `set_reference`.
///
/// Networks may be 16-bit. Latents, guidance, loss and scores are float then, and trainable weights have float masters,
/// which is what checkpoints hold (AdamW).
template <class UNet, class Lrm, class PolicyText, class RewardText>
class LpoTrainer {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Latent = compute_t<T>;

  /// `latent` is [h, w, c] of one latent.
  LpoTrainer(Context<Device>& context, UNet& policy, ParameterStore<T, Device>& store, PolicyText& policy_text, Lrm& lrm,
             RewardText& reward_text, const NoiseSchedule& schedule, const Extents<3>& latent, LpoTrainerOptions options)
      : context_(context), policy_(policy), store_(store), policy_text_(policy_text), reward_text_(reward_text),
        schedule_(schedule), options_(std::move(options)), tape_(context), denoiser_(tape_, policy, options_.guidance_scale),
        scorer_(tape_, lrm, options_.max_rows),
        rollout_(context, ddim_steps(schedule, options_.sample_steps, options_.eta),
                 chain_thresholds(schedule, options_),
                 Extents<4>{options_.sample_batch_size, latent[0], latent[1], latent[2]}, with_seed(options_)),
        batch_(micro_batch(options_), latent),
        optimizer_(context, {{store.trainable_values(), store.trainable_gradients(), store.trainable_size()}}, options_.optimizer),
        guard_(options_.max_skipped_steps) {
    if (store.trainable_size() == 0)
      throw ValueError("[LpoTrainer] the policy has no trainable weights; call enable_lora() and allocate with is_lora_name");
    if (options_.train_batch_size < 1 || options_.sample_batch_size < 1)
      throw ValueError("[LpoTrainer] sample_batch_size and train_batch_size must be at least 1");
    if (options_.lr_scheduler != LearningRateKind::constant &&
        options_.lr_scheduler != LearningRateKind::constant_with_warmup)
      throw ValueError(
          "[LpoTrainer] how many optimizer steps there will be depends on the pairs that are kept, so the rate cannot "
          "fall towards the last one; use lr_scheduler constant or constant_with_warmup");
    if (options_.ema_decay > 0) ema_.emplace(context, optimizer_.spans(), options_.ema_decay);
    tape_.set_checkpointing(options_.gradient_checkpointing);
    if (!(options_.loss_scale > 0)) throw ValueError(message("[LpoTrainer] loss_scale is ", options_.loss_scale, ", expected above 0"));
  }

  /// Uses another network as the reference (full fine-tuning).
  void set_reference(UNet& reference) { reference_ = &reference; }

  /// The averages of the trained weights; null without ema_decay. `swap()` them in to draw or export with them, and out
  /// again.
  Ema<T, Device>* ema() { return ema_ ? &*ema_ : nullptr; }

  /// Runs to max_train_iterations. `progress` is called before the first iteration, during roll-outs and after each
  /// iteration. With an output_dir, metrics go to metrics.jsonl and checkpoints beside it; the same seed gives the same
  /// bits with or without an interruption in between.
  LpoTrainerReport train(const PromptTokens& prompts, const ProgressCallback& progress = {}) {
    const CheckpointFolder folder(options_.output_dir, options_.checkpoints_total_limit);
    const std::size_t tail = 2 + 2 * rollout_.steps().size();  // per step, then what is counted in all
    std::vector<float> counters(tail + 2), good;
    if (options_.threshold_quantile > 0) calibrate(prompts);
    TrainingState state = training_state(counters);
    state.settings["prompts"] = fingerprint(prompts);
    if (options_.resume && !options_.output_dir.empty() && folder.resume(state)) {
      optimizer_.set_step_count(static_cast<index_t>(counters[0]));
      if constexpr (AdamW<T, Device>::has_masters) optimizer_.round_masters();
      guard_.set_skipped(static_cast<index_t>(counters[tail]));
      if (ema_) ema_->set_updates(static_cast<index_t>(counters[tail + 1]));
    }
    if (!options_.output_dir.empty()) make_directories(options_.output_dir);
    MetricsLog log(options_.output_dir.empty() ? "" : options_.output_dir + "/metrics.jsonl", state.step);
    ProgressReporter reporter("LPO", state.step, options_.max_train_iterations, progress);
    BatchOrder order(options_.seed, operation_prompts, prompts.size(), std::min(options_.sample_batch_size, prompts.size()));
    LpoTrainerReport report;
    double shown_accuracy = 0, shown_margin = 0, shown_loss = 0;
    const auto shown = [&] {
      return MetricValues{{"loss", shown_loss},
                          {"implicit_acc", shown_accuracy},
                          {"margin", shown_margin},
                          {"kept", static_cast<double>(rollout_.pairs().count())}};
    };
    const auto save = [&] {
      if (!options_.output_dir.empty() && guard_.in_a_row() == 0) folder.save(state, options_.checkpoint_files);
    };
    const auto cancel = [&] {
      throw CancelledError(
          message("[LpoTrainer] cancelled after iteration ", state.step, " of ", options_.max_train_iterations));
    };
    if (!reporter.report(state.step)) cancel();

    while (state.step < options_.max_train_iterations) {
      const auto rows = order.at(state.step);
      enter(LpoStage::text);
      const auto policy_prompts = encode(policy_text_, prompts.ids, prompts.tokens, rows);
      const auto reward_prompts = encode(reward_text_, prompts.reward_ids, prompts.reward_tokens, rows);
      denoiser_.set_prompts(policy_prompts);
      scorer_.set_prompts(reward_prompts);
      bool stopped = false;  // until the roll-out is over, weights are those of the last iteration
      const auto go_on = [&](int, int) { return !(stopped = !reporter.report(state.step, shown())); };
      try {
        RolloutStages stages{*this};
        rollout_.run(stages, stages, static_cast<std::uint32_t>(state.step), static_cast<index_t>(rows.size()), go_on);
      } catch (const CancelledError&) {
        if (!folder.contains(state.step)) save();
        if (stopped) cancel();
        throw;
      }
      if (guard_.in_a_row() == 0) good = counters;
      const auto [metrics, norm] = train_on_pairs(policy_prompts, static_cast<std::uint32_t>(state.step));
      if (guard_.exhausted()) {
        // Steps that were left out changed nothing: these are still the last good weights.
        state.step = guard_.first_iteration();
        std::copy(good.begin(), good.end(), counters.begin());
        count_steps(counters);
        const std::string name = options_.output_dir + "/checkpoint-" + std::to_string(state.step);
        if (!options_.output_dir.empty() && !folder.contains(state.step)) folder.save(state, options_.checkpoint_files);
        guard_.stop("LpoTrainer", options_.output_dir, options_.output_dir.empty() ? "" : name);
      }
      ++state.step;

      for (std::size_t i = 0; i < rollout_.statistics().size(); ++i) {
        counters[2 + 2 * i] += static_cast<float>(rollout_.statistics()[i].kept);
        counters[3 + 2 * i] += static_cast<float>(rows.size());
      }
      count_steps(counters);
      counters[1] += static_cast<float>(rollout_.pairs().count());
      const auto line = log_line(
          metrics, norm, static_cast<double>(state.step * std::ssize(rows)) / static_cast<double>(prompts.size()));
      log.write(state.step - 1, line);
      if (options_.on_metrics) options_.on_metrics(state.step - 1, line);
      if (metrics.pairs > 0 && std::isfinite(metrics.loss)) {
        const double keep = shown_loss == 0 ? 0.0 : 0.9;
        shown_loss = keep * shown_loss + (1 - keep) * metrics.loss;
        shown_accuracy = keep * shown_accuracy + (1 - keep) * metrics.implicit_accuracy;
        shown_margin = keep * shown_margin + (1 - keep) * metrics.margin;
      }
      const bool due = options_.checkpointing_iterations > 0 && state.step % options_.checkpointing_iterations == 0;
      if (due) save();
      if (!reporter.report(state.step, shown())) {
        if (!due) save();
        cancel();
      }
      if (options_.max_seconds > 0 && reporter.seconds() > options_.max_seconds) {
        report.time_limit_reached = true;
        break;
      }
    }
    // A longer run can go on from the end of this one.
    if (options_.checkpointing_iterations > 0 && !folder.contains(state.step)) save();
    report.iterations = state.step;
    report.optimizer_steps = optimizer_.step_count();
    report.pairs = static_cast<index_t>(counters[1]);
    report.skipped_steps = guard_.skipped();
    report.thresholds = rollout_.thresholds();
    for (std::size_t i = 0; i < rollout_.steps().size(); ++i) {
      report.timesteps.push_back(rollout_.steps()[i].timestep);
      report.kept_per_step.push_back(static_cast<double>(counters[2 + 2 * i]));
      report.drawn_per_step.push_back(static_cast<double>(counters[3 + 2 * i]));
    }
    return report;
  }

 private:
  static constexpr std::uint32_t operation_prompts = 0x3001, operation_calibration = 0x3002;
  static constexpr std::uint32_t calibration_iteration = 0x400000;  // roll-outs of their own, apart from the run's

  void enter(LpoStage stage) {
    if (options_.on_stage) options_.on_stage(stage);
  }

  /// The denoiser and the scorer as the roll-out sees them: each tells when it begins.
  struct RolloutStages {
    LpoTrainer& trainer;

    void predict(View<const Latent, 4, Device> latents, double timestep, View<Latent, 4, Device> prediction) {
      trainer.enter(LpoStage::denoising);
      trainer.denoiser_.predict(latents, timestep, prediction);
    }
    void score(View<const Latent, 4, Device> latents, int timestep, std::span<float> scores) {
      trainer.enter(LpoStage::scoring);
      trainer.scorer_.score(latents, timestep, scores);
    }
  };

  /// Draws roll-outs of the reference model, keeps every pair, and sets thresholds from their gaps. Depends on the seed alone,
  /// so a resumed run finds the same thresholds.
  void calibrate(const PromptTokens& prompts) {
    const auto plain = tape_.without_adapters();
    const auto count = rollout_.steps().size();
    rollout_.set_thresholds(std::vector<double>(count, 0.0));
    std::vector<std::vector<float>> gaps(count);
    BatchOrder order(options_.seed, operation_calibration, prompts.size(), std::min(options_.sample_batch_size, prompts.size()));
    for (int i = 0; i < options_.calibration_rollouts; ++i) {
      const auto rows = order.at(i);
      const auto policy_prompts = encode(policy_text_, prompts.ids, prompts.tokens, rows);
      const auto reward_prompts = encode(reward_text_, prompts.reward_ids, prompts.reward_tokens, rows);
      denoiser_.set_prompts(policy_prompts);
      scorer_.set_prompts(reward_prompts);
      rollout_.run(denoiser_, scorer_, calibration_iteration + static_cast<std::uint32_t>(i), static_cast<index_t>(rows.size()));
      for (const PairRecord& record : rollout_.pairs().records()) gaps[static_cast<std::size_t>(record.step)].push_back(record.gap);
    }
    ThresholdOptions unit = options_.threshold;
    unit.minimum = 0, unit.maximum = 0.5, unit.table = ThresholdTable::closed_form;
    auto shares = pair_thresholds(schedule_, options_.sample_steps, unit);
    for (double& share : shares) share *= 2;
    rollout_.set_thresholds(pair_thresholds(schedule_, options_.sample_steps,
                                            calibrated_thresholds(shares, std::move(gaps), options_.threshold_quantile, options_.threshold)));
  }

  static std::vector<double> chain_thresholds(const NoiseSchedule& schedule, const LpoTrainerOptions& options) {
    return pair_thresholds(schedule, options.sample_steps, options.threshold);
  }
  static index_t micro_batch(const LpoTrainerOptions& options) {
    return options.micro_batch_size > 0 ? std::min(options.micro_batch_size, options.train_batch_size) : options.train_batch_size;
  }
  static RolloutOptions with_seed(const LpoTrainerOptions& options) {
    RolloutOptions rollout = options.rollout;
    rollout.seed = options.seed;
    return rollout;
  }

  TrainingState training_state(std::vector<float>& counters) {
    static_assert(std::is_same_v<Latent, float>, "lpo LpoTrainer: networks are float, bfloat16 or half");
    TrainingState state;
    auto& s = state.settings;
    s["trainer"] = "lpo";
    s["seed"] = options_.seed;
    s["sample_batch_size"] = options_.sample_batch_size;
    s["train_batch_size"] = options_.train_batch_size;
    s["micro_batch_size"] = micro_batch(options_);
    s["sample_steps"] = options_.sample_steps;
    s["guidance_scale"] = options_.guidance_scale;
    s["eta"] = options_.eta;
    s["candidates"] = options_.rollout.candidates;
    s["beta"] = options_.loss.beta;
    s["clip"] = options_.loss.clip;
    s["learning_rate"] = options_.learning_rate;
    s["weight_decay"] = options_.optimizer.weight_decay;
    s["max_grad_norm"] = options_.max_grad_norm;
    s["lr_warmup_steps"] = options_.lr_scheduler == LearningRateKind::constant ? index_t{0} : options_.lr_warmup_steps;
    s["divert_steps"] = {options_.rollout.divert_start_step, options_.rollout.divert_end_step};
    s["lrm_timestep"] = options_.rollout.lrm_timestep == LrmTimestep::departure ? "departure" : "arrival";
    s["ema_decay"] = options_.ema_decay;
    s["thresholds"] = rollout_.thresholds();
    if (options_.loss_scale != 1) s["loss_scale"] = options_.loss_scale;
    const auto count = static_cast<std::size_t>(store_.trainable_size());
    float* weights = nullptr;
    if constexpr (AdamW<T, Device>::has_masters)
      weights = optimizer_.masters().data;
    else
      weights = store_.trainable_values();
    state.buffers = {device_buffer<Device>("weights", weights, count),
                     device_buffer<Device>("first_moment", optimizer_.first_moment().data, count),
                     device_buffer<Device>("second_moment", optimizer_.second_moment().data, count),
                     {"counters", counters}};
    if (ema_) state.buffers.push_back(device_buffer<Device>("ema", ema_->average().data, count));
    return state;
  }

  void count_steps(std::vector<float>& counters) const {
    counters[0] = static_cast<float>(optimizer_.step_count());
    counters[counters.size() - 2] = static_cast<float>(guard_.skipped());
    counters[counters.size() - 1] = ema_ ? static_cast<float>(ema_->updates()) : 0.0f;
  }

  /// Tells one list of prompts from another: their number, and FNV-1a of all ids.
  static std::string fingerprint(const PromptTokens& prompts) {
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (const auto* ids : {&prompts.ids, &prompts.reward_ids})
      for (const std::int32_t id : *ids) hash = (hash ^ static_cast<std::uint32_t>(id)) * 0x100000001b3u;
    return message(prompts.size(), " prompts, ", hash);
  }

  template <class Encoder>
  PromptBatch<T, Device> encode(Encoder& encoder, const std::vector<std::int32_t>& ids, index_t tokens,
                                const std::vector<index_t>& rows) {
    std::vector<std::int32_t> picked;
    for (const index_t row : rows) picked.insert(picked.end(), ids.begin() + row * tokens, ids.begin() + (row + 1) * tokens);
    return encode_prompts<T>(tape_, encoder, std::span<const std::int32_t>(picked), static_cast<index_t>(rows.size()));
  }

  /// One pass over the kept pairs in random order: one optimiser step per mini-batch, each with one policy forward, one
  /// reference forward and one backward per pair. Returns the largest gradient norm with the metrics.
  std::pair<LpoMetrics, double> train_on_pairs(const PromptBatch<T, Device>& prompts, std::uint32_t iteration) {
    LpoMetrics metrics;
    double largest_norm = 0;
    const auto order = shuffled_order(rollout_.pairs().count(), options_.seed, iteration);
    const auto size = static_cast<std::size_t>(options_.train_batch_size);
    for (std::size_t begin = 0; begin < order.size() && !guard_.exhausted(); begin += size)
      largest_norm = std::max(
          largest_norm, train_on_batch(prompts, std::span(order).subspan(begin, std::min(order.size() - begin, size)),
                                       iteration, metrics));
    return {metrics, largest_norm};
  }

  /// One optimiser step. The gradient of the batch's mean loss is the sum over micro-batches, each with its share.
  double train_on_batch(const PromptBatch<T, Device>& prompts, std::span<const int> pairs, std::uint32_t iteration,
                        LpoMetrics& metrics) {
    store_.reset_gradients();
    const auto size = static_cast<std::size_t>(micro_batch(options_));
    for (std::size_t begin = 0; begin < pairs.size(); begin += size) {
      const auto part = pairs.subspan(begin, std::min(pairs.size() - begin, size));
      rollout_.pairs().gather(context_, part, batch_);
      add_gradients(prompts, static_cast<double>(part.size()) / static_cast<double>(pairs.size()), metrics);
    }
    enter(LpoStage::optimizer);
    store_.finish_gradients();
    const double norm = global_gradient_norm(context_, optimizer_.spans()) / options_.loss_scale;
    const LearningRateSchedule rates{options_.lr_scheduler, options_.learning_rate, options_.lr_warmup_steps, 1};
    // A batch whose gradient is not finite is left out, as a loss scaler would.
    if (!guard_.accept(norm, iteration, optimizer_.step_count(), [&] { return non_finite_gradients(store_); }))
      return norm;
    rate_ = rates(optimizer_.step_count());
    optimizer_.step(rate_, clip_scale(norm, options_.max_grad_norm) / options_.loss_scale);
    if (ema_) ema_->update();
    return norm;
  }

  /// Forward and backward of the pairs in `batch_`, whose mean loss counts `share`.
  void add_gradients(const PromptBatch<T, Device>& prompts, double share, LpoMetrics& metrics) {
    std::vector<index_t> rows;
    std::vector<float> timesteps;
    std::vector<GaussianStep> steps;
    for (const PairRecord& record : batch_.records()) {
      rows.push_back(record.prompt);
      timesteps.push_back(static_cast<float>(record.timestep));
      steps.push_back(rollout_.steps()[static_cast<std::size_t>(record.step)]);
    }
    const auto predict = [&](UNet& unet) {
      return guided_prediction(unet, prompts, std::span<const index_t>(rows),
                               detail::network_input<T>(tape_, batch_.x_t()), std::span<const float>(timesteps),
                               options_.guidance_scale);
    };
    enter(LpoStage::reference);
    const auto reference = [&] {
      const auto guard = tape_.inference();
      const auto plain = tape_.without_adapters();
      return predict(reference_ != nullptr ? *reference_ : policy_);
    }();
    enter(LpoStage::policy);
    const auto loss = lpo_loss(predict(policy_), reference.view(), batch_.x_t(), batch_.x_win(), batch_.x_lose(),
                               std::span<const GaussianStep>(steps), options_.loss, &metrics);
    const auto weight = static_cast<Latent>(share * options_.loss_scale);
    const View<Latent, 1, Device> cotangent(tape_.template allocate<Latent>(1), Extents<1>{1});
    context_.copy_from_host(cotangent.data, &weight, sizeof(weight));
    backward(loss, View<const Latent, 1, Device>(cotangent));
    tape_.clear();
  }

  /// The names are the method's (lpo-method C6, D8).
  MetricValues log_line(const LpoMetrics& metrics, double norm, double epoch) const {
    RunningMoments scores;
    for (const auto& step : rollout_.statistics()) scores.merge(step.scores);
    const auto kept = kept_buckets(rollout_.statistics(), options_.small_bucket_includes_t1);
    MetricValues line{{"epoch", epoch},
                      {"reward_mean", scores.mean()},
                      {"reward_std", scores.deviation()},
                      {"kept", static_cast<double>(rollout_.pairs().count())},
                      {"kept_t_very_large", kept.very_large * 1.0},
                      {"kept_t_large", kept.large * 1.0},
                      {"kept_t_middle", kept.middle * 1.0},
                      {"kept_t_small", kept.small * 1.0}};
    if (metrics.pairs > 0) {
      const MetricValues trained{{"train_loss", metrics.loss},
                                 {"train_ratio_win", metrics.ratio_win},
                                 {"train_ratio_lose", metrics.ratio_lose},
                                 {"implicit_acc", metrics.implicit_accuracy},
                                 {"train_margin", metrics.margin},
                                 {"win_clipped", metrics.win_clipped},
                                 {"lose_clipped", metrics.lose_clipped},
                                 {"policy_density_win", metrics.density_win},
                                 {"policy_density_lose", metrics.density_lose},
                                 {"ref_density_win", metrics.reference_density_win},
                                 {"ref_density_lose", metrics.reference_density_lose},
                                 {"grad_norm", norm},
                                 {"lr", rate_},
                                 {"skipped_steps", static_cast<double>(guard_.skipped())},
                                 {"global_step", static_cast<double>(optimizer_.step_count())}};
      line.insert(line.end(), trained.begin(), trained.end());
    }
    return line;
  }

  Context<Device>& context_;
  UNet& policy_;
  UNet* reference_ = nullptr;
  ParameterStore<T, Device>& store_;
  PolicyText& policy_text_;
  RewardText& reward_text_;
  const NoiseSchedule& schedule_;
  LpoTrainerOptions options_;
  Tape<Device> tape_;
  GuidedDenoiser<UNet> denoiser_;
  LatentScorer<Lrm> scorer_;
  Rollout<Latent, Device> rollout_;
  PairStore<Latent, Device> batch_;
  AdamW<T, Device> optimizer_;
  std::optional<Ema<T, Device>> ema_;
  FiniteGuard guard_;
  double rate_ = 0;  // of the last optimiser step
};

}  // namespace lpo::inline LPO_ABI
