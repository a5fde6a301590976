// SPDX-License-Identifier: MIT
// DpoTrainer: Diffusion-DPO — trains a policy on preferred and rejected images by how well each is denoised.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <lpo/distributed/collectives.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/optim/adamw.hpp>
#include <lpo/optim/clip.hpp>
#include <lpo/optim/ema.hpp>
#include <lpo/train/dpo_passes.hpp>
#include <lpo/train/dpo_trainer_options.hpp>
#include <lpo/train/finite_guard.hpp>
#include <lpo/train/latent_pairs.hpp>
#include <lpo/train/latent_scorer.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/optimizer_buffers.hpp>
#include <lpo/train/progress.hpp>
#include <lpo/train/training_checkpoint.hpp>

namespace lpo::inline LPO_ABI {

/// One object per run. The policy's store must hold trainable weights (its LoRA, or all of it); with LoRA the reference is
/// the same UNet with adapters off. Without any LoRA, pass a frozen copy through `set_reference`.
///
/// The UNet may be 16-bit. Latents, predictions that are compared and the loss are float then, and trainable weights have
/// float masters, which is what checkpoints hold (AdamW).
///
/// With several ranks each takes a share of every batch. Options, losses and weights are those of one rank; rank 0
/// writes, and micro_batch_size is of each rank.
template <class UNet, class Text, Communicator<typename UNet::device> Ranks = SoloCommunicator>
class DpoTrainer {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Latent = compute_t<T>;

  DpoTrainer(Context<Device>& context, UNet& policy, ParameterStore<T, Device>& store, Text& text, const NoiseSchedule& schedule,
             DpoTrainerOptions options, Ranks ranks = {})
      : ranks_(begin_alike(std::move(ranks), context, store)), context_(context), store_(store), text_(text), schedule_(schedule),
        options_(std::move(options)), tape_(context), passes_(tape_, policy, store, options_),
        optimizer_(context, {{store.trainable_values(), store.trainable_gradients(), store.trainable_size()}}, options_.optimizer),
        guard_(options_.max_skipped_steps) {
    if (store.trainable_size() == 0)
      throw ValueError("[DpoTrainer] the policy has no trainable weights; call enable_lora() and allocate with is_lora_name");
    if (options_.train_batch_size < 1 || options_.micro_batch_size < 0 || options_.max_train_steps < 0)
      throw ValueError("[DpoTrainer] train_batch_size must be at least 1, micro_batch_size and max_train_steps at least 0");
    if (options_.train_batch_size < ranks_.size())
      throw ValueError(message("[DpoTrainer] a batch of ", options_.train_batch_size, " has nothing for some of ",
                               ranks_.size(), " ranks; make train_batch_size larger"));
    if (!(options_.proportion_empty_prompts >= 0 && options_.proportion_empty_prompts <= 1))
      throw ValueError(message("[DpoTrainer] proportion_empty_prompts is ", options_.proportion_empty_prompts, ", expected 0 to 1"));
    if (!(options_.loss_scale > 0)) throw ValueError(message("[DpoTrainer] loss_scale is ", options_.loss_scale, ", expected above 0"));
    if (options_.ema_decay > 0) ema_.emplace(context, optimizer_.spans(), options_.ema_decay);
    tape_.set_checkpointing(options_.gradient_checkpointing);
  }

  /// Uses another network as the reference (full fine-tuning).
  void set_reference(UNet& reference) { passes_.set_reference(reference); }

  /// The averages of the trained weights; null without ema_decay. `swap()` them in to draw or export with them, and out
  /// again.
  Ema<T, Device>* ema() { return ema_ ? &*ema_ : nullptr; }

  /// Runs to max_train_steps. `progress` is called before the first step, after each, and between micro-batches, where to
  /// stop drops the step that is begun. The same seed and data give the same bits, with or without an interruption in
  /// between. After max_skipped_steps steps in a row that were not finite, a
  /// checkpoint of the weights before them is saved and FiniteGuard throws.
  DpoTrainerReport train(const LatentPairs& data, const ProgressCallback& progress = {}) {
    data.check();
    const auto preferences = preferred_first(data);
    if (preferences.empty()) throw ValueError(message("[DpoTrainer] none of ", data.size(), " pairs has a preferred image"));
    const bool writes = !options_.output_dir.empty() && ranks_.rank() == 0;
    const CheckpointFolder folder(options_.output_dir, options_.checkpoints_total_limit);
    std::vector<float> counters(counter_count), good;
    TrainingState state = training_state(counters);
    state.settings["pairs"] = preferences.size();
    if (begin_together(folder, options_.resume && !options_.output_dir.empty(), state, ranks_)) restore_counters(counters);
    if (writes) make_directories(options_.output_dir);
    MetricsLog log(writes ? options_.output_dir + "/metrics.jsonl" : "", state.step);
    ProgressReporter reporter("DPO", state.step, options_.max_train_steps, progress);
    BatchOrder order(options_.seed, operation_order, static_cast<index_t>(preferences.size()), options_.train_batch_size);
    const auto save = [&] {
      if (writes && guard_.in_a_row() == 0) save_finite(folder, state, store_, options_.checkpoint_files);
    };
    const auto cancel = [&](const char* dropped = "") {
      ranks_.barrier();  // rank 0 has written
      throw CancelledError(message("[DpoTrainer] cancelled after step ", state.step, " of ", options_.max_train_steps, dropped));
    };
    DpoTrainerReport report;
    report.pairs = static_cast<index_t>(preferences.size());
    double shown_loss = 0, shown_accuracy = 0;
    const auto stopped = [&](MetricValues shown) {
      return any_rank(ranks_, !reporter.report(state.step, std::move(shown)));
    };
    if (stopped({})) cancel();

    while (state.step < options_.max_train_steps) {
      if (guard_.in_a_row() == 0) good = counters;
      std::vector<LatentPairs::Pair> pairs;
      for (const index_t i : order.at(state.step)) pairs.push_back(preferences[static_cast<std::size_t>(i)]);
      const StepResult result = step(data, pairs, state.step, [&] { return reporter.report_within_step(); });
      if (result.cut) {  // nothing has changed since the last step
        if (!folder.contains(state.step)) save();
        cancel("; the step that was begun is dropped");
      }
      if (guard_.exhausted()) {
        // Steps that were left out changed nothing: these are still the last good weights.
        state.step = guard_.first_iteration();
        std::copy(good.begin(), good.end(), counters.begin());
        const std::string name = writes ? save_last_good(folder, state, store_, options_.checkpoint_files) : "";
        ranks_.barrier();
        guard_.stop("DpoTrainer", writes ? options_.output_dir : "", name,
                    "lower learning_rate or beta_dpo, or look for damaged latents");
      }
      ++state.step;
      count_steps(counters);
      const auto line = log_line(result, state.step, report.pairs);
      log.write(state.step - 1, line);
      if (options_.on_metrics && ranks_.rank() == 0) options_.on_metrics(state.step - 1, line);
      if (std::isfinite(result.metrics.loss)) {
        const double keep = shown_loss == 0 ? 0.0 : 0.9;
        shown_loss = keep * shown_loss + (1 - keep) * result.metrics.loss;
        shown_accuracy = keep * shown_accuracy + (1 - keep) * result.metrics.implicit_accuracy;
      }
      const bool due = options_.checkpointing_steps > 0 && state.step % options_.checkpointing_steps == 0;
      if (due) save();
      if (stopped({{"loss", shown_loss}, {"implicit_acc", shown_accuracy}})) {
        if (!due) save();
        cancel();
      }
      if (options_.max_seconds > 0 && any_rank(ranks_, reporter.seconds() > options_.max_seconds)) {
        report.time_limit_reached = true;
        break;
      }
    }
    // A longer run can go on from the end of this one.
    if (options_.checkpointing_steps > 0 && writes && !folder.contains(state.step)) save();
    report.steps = state.step;
    report.skipped_steps = guard_.skipped();
    return report;
  }

 private:
  static constexpr std::uint32_t operation_order = 0x4001, operation_choices = 0x4002, operation_noise = 0x4003,
                                 operation_posterior = 0x4004;

  /// What a checkpoint counts: floats, because checkpoints are of floats; exact up to 2^24 steps.
  enum Counter { optimizer_steps, skipped_steps, ema_updates, counter_count };

  struct StepResult {
    DiffusionDpoMetrics metrics;
    double norm = 0, rate = 0;
    bool cut = false;  ///< told to stop between micro-batches: gradients are not whole, weights as they were
  };

  /// Pairs that are not ties, turned so that `first` is preferred.
  static std::vector<LatentPairs::Pair> preferred_first(const LatentPairs& data) {
    std::vector<LatentPairs::Pair> pairs;
    for (std::size_t i = 0; i < data.pairs.size(); ++i) {
      const auto& label = data.labels[i];
      if (label.label_0 > label.label_1) pairs.push_back(data.pairs[i]);
      if (label.label_0 < label.label_1) pairs.push_back({data.pairs[i].second, data.pairs[i].first});
    }
    return pairs;
  }

  TrainingState training_state(std::vector<float>& counters) {
    static_assert(std::is_same_v<Latent, float>, "lpo DpoTrainer: networks are float, bfloat16 or half");
    TrainingState state;
    auto& s = state.settings;
    s["trainer"] = "dpo";
    s["seed"] = options_.seed;
    s["train_batch_size"] = options_.train_batch_size;
    s["micro_batch_size"] = options_.micro_batch_size;
    s["beta_dpo"] = options_.beta_dpo;
    s["prediction_type"] = std::string(name_of(options_.prediction_type));
    s["proportion_empty_prompts"] = options_.proportion_empty_prompts;
    s["learning_rate"] = options_.learning_rate;
    s["lr_scheduler"] = static_cast<int>(options_.lr_scheduler);
    s["lr_warmup_steps"] = options_.lr_warmup_steps;
    // Rates that fall towards the last step depend on which it is.
    if (options_.lr_scheduler != LearningRateKind::constant && options_.lr_scheduler != LearningRateKind::constant_with_warmup)
      s["max_train_steps"] = options_.max_train_steps;
    s["max_grad_norm"] = options_.max_grad_norm;
    s["ema_decay"] = options_.ema_decay;
    if (options_.loss_scale != 1) s["loss_scale"] = options_.loss_scale;
    add_shared_settings(state, options_.optimizer, options_.more_settings);
    add_optimizer_buffers(state, store_, optimizer_, ema_);
    state.buffers.push_back({"counters", counters});
    return state;
  }

  void count_steps(std::vector<float>& counters) const {
    counters[optimizer_steps] = static_cast<float>(optimizer_.step_count());
    counters[skipped_steps] = static_cast<float>(guard_.skipped());
    counters[ema_updates] = ema_ ? static_cast<float>(ema_->updates()) : 0.0f;
  }

  void restore_counters(const std::vector<float>& counters) {
    optimizer_.set_step_count(static_cast<index_t>(counters[optimizer_steps]));
    if constexpr (AdamW<T, Device>::has_masters) optimizer_.round_masters();
    guard_.set_skipped(static_cast<index_t>(counters[skipped_steps]));
    if (ema_) ema_->set_updates(static_cast<index_t>(counters[ema_updates]));
  }

  MetricValues log_line(const StepResult& result, index_t steps, index_t pairs) const {
    return {{"train_loss", result.metrics.loss},
            {"implicit_acc", result.metrics.implicit_accuracy},
            {"train_margin", result.metrics.margin},
            {"grad_norm", result.norm},
            {"lr", result.rate},
            {"epoch", static_cast<double>(steps * options_.train_batch_size) / static_cast<double>(pairs)},
            {"skipped_steps", static_cast<double>(guard_.skipped())},
            {"global_step", static_cast<double>(optimizer_.step_count())}};
  }

  /// One optimiser step. The gradient of the batch's mean loss is the sum over micro-batches, each with its share.
  /// `go_on()` is asked between them, by each rank of its own.
  template <class GoOn>
  StepResult step(const LatentPairs& data, std::span<const LatentPairs::Pair> pairs, index_t step_index, const GoOn& go_on) {
    const auto counter = static_cast<std::uint32_t>(step_index);
    RandomStream random(options_.seed, operation_choices, counter);
    std::vector<DpoBatch::Choice> choices(pairs.size());
    for (DpoBatch::Choice& choice : choices) {
      choice.timestep = static_cast<int>(random.uniform_int(static_cast<std::uint32_t>(schedule_.train_timesteps())));
      choice.prompted = !random.bernoulli(static_cast<float>(options_.proportion_empty_prompts));
    }
    const Share own = own_share(ranks_, std::ssize(pairs));
    const index_t size = options_.micro_batch_size > 0 ? options_.micro_batch_size : own.size();
    const DpoBatch::Noise noise{.normal = {options_.seed, operation_noise, counter},
                                .posterior = {options_.seed, operation_posterior, counter}};
    StepResult result;
    store_.reset_gradients();
    for (index_t begin = own.begin; begin < own.end; begin += size) {
      if (begin > own.begin && !go_on()) {
        result.cut = true;
        break;
      }
      const auto first = static_cast<std::size_t>(begin), count = static_cast<std::size_t>(std::min(own.end - begin, size));
      const DpoBatch batch(schedule_, options_.prediction_type, data, pairs.subspan(first, count),
                           std::span<const DpoBatch::Choice>(choices).subspan(first, count), begin, noise);
      encode_prompts(tape_, text_, std::span<const std::int32_t>(batch.token_ids), batch.pairs(), prompts_);
      passes_.add_gradients(prompts_, batch, {data.height, data.width, data.channels},
                            static_cast<double>(count) / static_cast<double>(pairs.size()), begin == own.begin,
                            result.metrics);
    }
    result.cut = any_rank(ranks_, result.cut);
    if (result.cut) return result;
    store_.finish_gradients();
    sum_gradients(ranks_, context_, store_.trainable_gradients(), store_.trainable_size());
    result.metrics = merged_over_ranks(ranks_, result.metrics);
    result.norm = global_gradient_norm(context_, optimizer_.spans()) / options_.loss_scale;
    const LearningRateSchedule rates{options_.lr_scheduler, options_.learning_rate, options_.lr_warmup_steps, options_.max_train_steps};
    result.rate = rates(step_index);
    // A batch whose gradient is not finite is left out, as a loss scaler would.
    if (!guard_.accept(result.norm, step_index, optimizer_.step_count(), [&] { return non_finite_gradients(store_); }))
      return result;
    optimizer_.step(result.rate, clip_scale(result.norm, options_.max_grad_norm) / options_.loss_scale);
    if (ema_) ema_->update();
    return result;
  }

  Ranks ranks_;
  Context<Device>& context_;
  ParameterStore<T, Device>& store_;
  Text& text_;
  const NoiseSchedule& schedule_;
  DpoTrainerOptions options_;
  Tape<Device> tape_;
  PromptBatch<T, Device> prompts_;  ///< of a mini-batch
  DpoPasses<UNet> passes_;
  AdamW<T, Device> optimizer_;
  std::optional<Ema<T, Device>> ema_;
  FiniteGuard guard_;
};

}  // namespace lpo::inline LPO_ABI
