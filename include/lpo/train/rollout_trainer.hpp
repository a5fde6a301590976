// SPDX-License-Identifier: MIT
// RolloutTrainer: on-policy training — roll out, rate the candidates of every step, train on what an objective keeps of
// them.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/diffusion/ddim.hpp>
#include <lpo/distributed/collectives.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/optim/clip.hpp>
#include <lpo/optim/ema.hpp>
#include <lpo/train/dealt_items.hpp>
#include <lpo/train/finite_guard.hpp>
#include <lpo/train/latent_pairs.hpp>
#include <lpo/train/optimizer_buffers.hpp>
#include <lpo/train/policy_passes.hpp>
#include <lpo/train/progress.hpp>
#include <lpo/train/prompt_rollout.hpp>
#include <lpo/train/rollout_run.hpp>
#include <lpo/train/training_checkpoint.hpp>

namespace lpo::inline LPO_ABI {

/// How a method is called: in settings ("lpo"), in messages ("LpoTrainer") and for people ("LPO").
struct MethodNames {
  const char* method;
  const char* trainer;
  const char* title;
};

/// The loop that LPO, SPO and GRPO share: prompts, roll-outs, optimiser steps, leaving out steps that are not finite,
/// averages, checkpoints, log. What differs is
///   - the Scorer (PromptedLatentScorer, PredictedImageScorer): rates candidates;
///   - the Objective (PairObjective, GrpoObjective): what is kept of a roll-out, and the loss on it.
///
/// One object per run. The policy's store must hold trainable weights (its LoRA, or all of it), with the values to
/// start from; with LoRA the reference is the same UNet with adapters off. Without any LoRA, pass a frozen copy through
/// `set_reference`.
///
/// Networks may be 16-bit. Latents, guidance, loss and scores are float then, and trainable weights have float masters,
/// which is what checkpoints hold (AdamW).
///
/// With several ranks each rolls out a share of the prompts, and trains on a share of every mini-batch of what all kept
/// (DealtItems). Options, numbers in the log and weights are those of one rank; rank 0 writes, and micro_batch_size is of
/// each rank.
template <class UNet, class PolicyText, class Scorer, class Objective,
          Communicator<typename UNet::device> Ranks = SoloCommunicator>
class RolloutTrainer {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Latent = compute_t<T>;

  /// `latent` is [h, w, c] of one latent; `make_scorer(tape)` gives the scorer.
  template <class MakeScorer>
  RolloutTrainer(MethodNames names, Context<Device>& context, UNet& policy, ParameterStore<T, Device>& store,
                 PolicyText& policy_text, const NoiseSchedule& schedule, const Extents<3>& latent,
                 RolloutTrainerOptions options, const MakeScorer& make_scorer, Objective objective, Ranks ranks = {})
      : names_(names), ranks_(begin_alike(std::move(ranks), context, store)), context_(context), store_(store),
        options_(std::move(options)), objective_(std::move(objective)), tape_(context),
        rollout_(ranks_, tape_, policy, policy_text, options_, ddim_steps(schedule, options_.sample_steps, options_.eta),
                 objective_.thresholds(), Objective::keeps_pairs, latent, make_scorer),
        passes_(names.trainer, tape_, policy, store, objective_, options_),
        optimizer_(context, {{store.trainable_values(), store.trainable_gradients(), store.trainable_size()}}, options_.optimizer),
        guard_(options_.max_skipped_steps) {
    const auto refuse = [&](const auto&... parts) { throw ValueError(message("[", names_.trainer, "] ", parts...)); };
    if (store.trainable_size() == 0)
      refuse("the policy has no trainable weights; call enable_lora() and allocate with is_lora_name");
    if (options_.train_batch_size < 1 || options_.sample_batch_size < 1)
      refuse("sample_batch_size and train_batch_size must be at least 1");
    if (options_.sample_batch_size < ranks_.size())
      refuse("a roll-out of ", options_.sample_batch_size, " prompts has nothing for some of ", ranks_.size(),
             " ranks; make sample_batch_size larger");
    if (options_.lr_scheduler != LearningRateKind::constant &&
        options_.lr_scheduler != LearningRateKind::constant_with_warmup)
      refuse(
          "how many optimizer steps there will be depends on the pairs that are kept, so the rate cannot "
          "fall towards the last one; use lr_scheduler constant or constant_with_warmup");
    if (options_.ema_decay > 0) ema_.emplace(context, optimizer_.spans(), options_.ema_decay);
    tape_.set_checkpointing(options_.gradient_checkpointing);
    if (!(options_.loss_scale > 0)) refuse("loss_scale is ", options_.loss_scale, ", expected above 0");
  }

  /// Uses another network as the reference (full fine-tuning).
  void set_reference(UNet& reference) { passes_.set_reference(reference); }

  /// The averages of the trained weights; null without ema_decay. `swap()` them in to draw or export with them, and out
  /// again.
  Ema<T, Device>* ema() { return ema_ ? &*ema_ : nullptr; }

  /// Runs to max_train_iterations. `progress` is called before the first iteration, during roll-outs, between the
  /// micro-batches that train and after each iteration. To stop within an iteration drops it: the checkpoint is of the
  /// one before. A policy that trains whole keeps no copy of itself for that: after its first optimiser step it finishes
  /// the iteration. With an output_dir, metrics go to metrics.jsonl and checkpoints beside it; the same seed gives the same
  /// bits with or without an interruption in between.
  RolloutTrainerReport train(const PromptTokens& prompts, const ProgressCallback& progress = {}) {
    const bool writes = !options_.output_dir.empty() && ranks_.rank() == 0;
    const CheckpointFolder folder(options_.output_dir, options_.checkpoints_total_limit);
    RolloutCounters counters(rollout_.steps().size()), good = counters;
    if (prompts.size() < ranks_.size())
      throw ValueError(message("[", names_.trainer, "] ", prompts.size(), " prompts have nothing for some of ",
                               ranks_.size(), " ranks; start fewer"));
    prepare(prompts, progress);
    TrainingState state = training_state(counters);
    state.settings["prompts"] = fingerprint(prompts);
    if (begin_together(folder, options_.resume && !options_.output_dir.empty(), state, ranks_)) {
      take_counters(counters);
    }
    if (writes) make_directories(options_.output_dir);
    MetricsLog log(writes ? options_.output_dir + "/metrics.jsonl" : "", state.step);
    ProgressReporter reporter(names_.title, state.step, options_.max_train_iterations, progress);
    BatchOrder order(options_.seed, operation_prompts, prompts.size(), std::min(options_.sample_batch_size, prompts.size()));
    RolloutTrainerReport report;
    MetricValues smoothed;
    const auto shown = [&] {
      MetricValues values = smoothed.empty() ? objective_.shown() : smoothed;
      values.emplace_back("kept", static_cast<double>(kept_in_all(rollout_.rollout().statistics())));
      return values;
    };
    const auto save = [&] {
      if (writes && guard_.in_a_row() == 0) save_finite(folder, state, store_, options_.checkpoint_files);
    };
    const auto cancel = [&](const char* dropped = "") {
      ranks_.barrier();  // rank 0 has written
      throw CancelledError(message("[", names_.trainer, "] cancelled after iteration ", state.step, " of ",
                                   options_.max_train_iterations, dropped));
    };
    const auto stopped = [&](MetricValues values) {
      return any_rank(ranks_, !reporter.report(state.step, std::move(values)));
    };
    if (stopped({})) cancel();

    while (state.step < options_.max_train_iterations) {
      const auto rows = order.at(state.step);
      begin_stage(options_, LpoStage::text);
      const auto policy_prompts = rollout_.encode(prompts, rows);
      bool cancelled = false;  // until the roll-out is over, weights are those of the last iteration
      std::string not_a_number;
      try {
        rollout_.run(prompts, rows, policy_prompts, static_cast<std::uint32_t>(state.step), objective_,
                     [&](int, int) { return !(cancelled = stopped(shown())); });
      } catch (const CancelledError&) {
        if (writes && !folder.contains(state.step)) save();
        if (!cancelled) throw;
      } catch (const NotANumberScore& error) {
        not_a_number = error.what();
        any_rank(ranks_, true);  // is what the others ask after this step: they stop as well
      }
      not_a_number = first_text(ranks_, not_a_number);
      if (!not_a_number.empty()) {
        const index_t iteration = state.step;
        const std::string name = save_good(folder, writes, state, counters, good);
        ranks_.barrier();
        guard_.stop_at(names_.trainer, writes ? options_.output_dir : "", name, iteration, optimizer_.step_count(),
                       not_a_number);
      }
      if (cancelled) cancel();
      const bool all_good = guard_.in_a_row() == 0;
      if (all_good) good = counters;
      const auto trained = train_on_kept(policy_prompts, state, [&] { return reporter.report_within_step(); });
      if (!trained) {
        take_counters(counters);
        if (writes && all_good && !folder.contains(state.step)) folder.save(state, options_.checkpoint_files);
        cancel("; the iteration that was begun is dropped");
      }
      const double norm = *trained;
      if (guard_.exhausted()) {
        const std::string name = save_good(folder, writes, state, counters, good);
        ranks_.barrier();
        guard_.stop(names_.trainer, writes ? options_.output_dir : "", name);
      }
      ++state.step;

      counters.add_rollout(rollout_.steps(), rollout_.rollout().statistics(), std::ssize(rows));
      count_steps(counters);
      counters.add_items(dealt_.total());
      const auto line = log_line(
          norm, static_cast<double>(state.step * std::ssize(rows)) / static_cast<double>(prompts.size()));
      log.write(state.step - 1, line);
      if (options_.on_metrics && ranks_.rank() == 0) options_.on_metrics(state.step - 1, line);
      if (objective_.trained() > 0 && std::isfinite(objective_.shown().front().second))
        smoothed = smooth(std::move(smoothed), objective_.shown());
      const bool due = options_.checkpointing_iterations > 0 && state.step % options_.checkpointing_iterations == 0;
      if (due) save();
      if (stopped(shown())) {
        if (!due) save();
        cancel();
      }
      if (options_.max_seconds > 0 && any_rank(ranks_, reporter.seconds() > options_.max_seconds)) {
        report.time_limit_reached = true;
        break;
      }
    }
    // A longer run can go on from the end of this one.
    if (options_.checkpointing_iterations > 0 && writes && !folder.contains(state.step)) save();
    report.iterations = state.step;
    report.optimizer_steps = optimizer_.step_count();
    report.skipped_steps = guard_.skipped();
    report.thresholds = rollout_.rollout().thresholds();
    counters.write_to(report, rollout_.steps());
    return report;
  }

 private:
  using Dealt = DealtItems<typename Objective::Store, Device>;

  static constexpr std::uint32_t operation_prompts = 0x3001, operation_calibration = 0x3002;
  static constexpr std::uint32_t calibration_iteration = 0x400000;  // roll-outs of their own, apart from the run's

  /// Lets the objective look at roll-outs of the reference model. They depend on the seed alone, so a resumed run finds
  /// the same numbers.
  void prepare(const PromptTokens& prompts, const ProgressCallback& progress) {
    const auto plain = tape_.without_adapters();
    BatchOrder order(options_.seed, operation_calibration, prompts.size(), std::min(options_.sample_batch_size, prompts.size()));
    ProgressReporter reporter(names_.title, 0, options_.max_train_iterations, progress);
    objective_.prepare(ranks_, rollout_.rollout(), [&](int i) {
      const auto rows = order.at(i);
      const auto policy_prompts = rollout_.encode(prompts, rows);
      try {
        rollout_.run(prompts, rows, policy_prompts, calibration_iteration + static_cast<std::uint32_t>(i), objective_,
                     [&](int, int) { return !any_rank(ranks_, !reporter.report_preparing()); });
      } catch (const CancelledError&) {
        throw CancelledError(message("[", names_.trainer, "] cancelled while thresholds were looked for; checkpoints are as they were"));
      }
    });
  }

  static MetricValues smooth(MetricValues average, const MetricValues& values) {
    if (average.empty()) return values;
    for (std::size_t i = 0; i < values.size(); ++i) average[i].second = 0.9 * average[i].second + (1 - 0.9) * values[i].second;
    return average;
  }

  /// Steps that were left out changed nothing: the weights are those from before the first of them. Goes back to its
  /// iteration, and returns the name of that checkpoint, which is written if need be; empty without an output_dir, or
  /// without weights that are finite.
  std::string save_good(const CheckpointFolder& folder, bool writes, TrainingState& state, RolloutCounters& counters,
                        const RolloutCounters& good) {
    if (guard_.in_a_row() > 0) {
      state.step = guard_.first_iteration();
      counters.go_back(good);
    }
    count_steps(counters);
    return writes ? save_last_good(folder, state, store_, options_.checkpoint_files) : "";
  }

  TrainingState training_state(RolloutCounters& counters) {
    static_assert(std::is_same_v<Latent, float>, "lpo RolloutTrainer: networks are float, bfloat16 or half");
    TrainingState state;
    auto& s = state.settings;
    s["trainer"] = names_.method;
    add_rollout_settings(s, options_);
    objective_.add_settings(s);
    s["thresholds"] = rollout_.rollout().thresholds();
    add_shared_settings(state, options_.optimizer, options_.more_settings);
    add_optimizer_buffers(state, store_, optimizer_, ema_);
    state.buffers.push_back({"counters", counters.values()});
    return state;
  }

  void take_counters(const RolloutCounters& counters) {
    optimizer_.set_step_count(counters.optimizer_steps());
    if constexpr (AdamW<T, Device>::has_masters) optimizer_.round_masters();
    guard_.set_skipped(counters.skipped_steps());
    if (ema_) ema_->set_updates(counters.ema_updates());
  }

  void count_steps(RolloutCounters& counters) const {
    counters.set_optimizer(optimizer_.step_count(), guard_.skipped(), ema_ ? ema_->updates() : 0);
  }

  /// One pass over the kept items in random order: one optimiser step per mini-batch. Returns the largest gradient norm;
  /// or nothing where `go_on()`, which each rank asks of its own between micro-batches, said no: weights, moments and
  /// averages are then those of `state` again, as they were before.
  template <class GoOn>
  std::optional<double> train_on_kept(const PromptBatch<T, Device>& prompts, const TrainingState& state, const GoOn& go_on) {
    const auto iteration = static_cast<std::uint32_t>(state.step);
    const index_t steps_before = optimizer_.step_count();
    double largest_norm = 0;
    dealt_.deal(context_, ranks_, objective_.items(rollout_.rollout()), options_.seed, iteration, options_.train_batch_size);
    // Going back after an optimiser step takes a copy, which is small beside the model unless all of it trains.
    const bool keeps = !passes_.has_reference() && dealt_.batches().size() > 1;
    if (keeps) before_.take(state);
    bool first = true;
    for (const auto& batch : dealt_.batches()) {
      if (guard_.exhausted()) break;
      const auto norm = train_on_batch(prompts, batch, iteration, [&] {
        if (std::exchange(first, false)) return true;  // has been asked after the roll-out
        return (!keeps && optimizer_.step_count() != steps_before) || go_on();
      });
      if (!norm) {
        if (keeps) before_.put_back(state);
        return std::nullopt;
      }
      largest_norm = std::max(largest_norm, *norm);
    }
    objective_.metrics() = merged_over_ranks(ranks_, objective_.metrics());
    return largest_norm;
  }

  /// One optimiser step. The gradient of the batch's mean loss is the sum over ranks and micro-batches, each with its
  /// share. Nothing where it was told to stop before one of them: no step is taken.
  template <class GoOn>
  std::optional<double> train_on_batch(const PromptBatch<T, Device>& prompts, const typename Dealt::Batch& batch,
                                       std::uint32_t iteration, const GoOn& go_on) {
    store_.reset_gradients();
    const std::span<const int> items(batch.own);
    const auto size = static_cast<std::size_t>(micro_batch_items(options_));
    bool cut = false;
    for (std::size_t begin = 0; begin < items.size(); begin += size) {
      cut = !go_on();
      if (cut) break;
      const auto part = items.subspan(begin, std::min(items.size() - begin, size));
      objective_.gather(context_, dealt_.items(), part);
      const double share = static_cast<double>(part.size()) / static_cast<double>(batch.total);
      passes_.add_gradients(prompts, rollout_.steps(), share, begin == 0);
    }
    if (any_rank(ranks_, cut)) return std::nullopt;
    begin_stage(options_, LpoStage::optimizer);
    store_.finish_gradients();
    sum_gradients(ranks_, context_, store_.trainable_gradients(), store_.trainable_size());
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

  MetricValues log_line(double norm, double epoch) const {
    RunningMoments scores;
    for (const auto& step : rollout_.rollout().statistics()) scores.merge(step.scores);
    MetricValues line{{"epoch", epoch}, {"reward_mean", scores.mean()}, {"reward_std", scores.deviation()}};
    const auto add = [&](const MetricValues& columns) { line.insert(line.end(), columns.begin(), columns.end()); };
    add(objective_.rollout_columns(rollout_.rollout()));
    if (objective_.trained() == 0) return line;
    add(objective_.training_columns());
    add({{"grad_norm", norm},
         {"lr", rate_},
         {"skipped_steps", static_cast<double>(guard_.skipped())},
         {"global_step", static_cast<double>(optimizer_.step_count())}});
    return line;
  }

  MethodNames names_;
  Ranks ranks_;
  Context<Device>& context_;
  ParameterStore<T, Device>& store_;
  RolloutTrainerOptions options_;
  Objective objective_;
  Tape<Device> tape_;
  PromptRollout<UNet, PolicyText, Scorer, Ranks> rollout_;
  PolicyPasses<UNet, Objective> passes_;
  Dealt dealt_;
  AdamW<T, Device> optimizer_;
  std::optional<Ema<T, Device>> ema_;
  FiniteGuard guard_;
  TrainingStateCopy before_;  ///< the iteration that trains
  double rate_ = 0;  // of the last optimiser step
};

}  // namespace lpo::inline LPO_ABI
