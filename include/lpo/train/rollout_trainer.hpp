// SPDX-License-Identifier: MIT
// RolloutTrainer: on-policy training — roll out, rate the candidates of every step, train on what an objective keeps of
// them.
#pragma once

#include <algorithm>
#include <map>
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
#include <lpo/train/latent_scorer.hpp>
#include <lpo/train/optimizer_buffers.hpp>
#include <lpo/train/progress.hpp>
#include <lpo/train/rollout_trainer_options.hpp>
#include <lpo/train/text_states.hpp>
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
      : names_(names), ranks_(begin_alike(std::move(ranks), context, store)), context_(context), policy_(policy), store_(store), policy_text_(policy_text),
        options_(std::move(options)), objective_(std::move(objective)), tape_(context),
        denoiser_(tape_, policy, options_.guidance_scale), scorer_(make_scorer(tape_)),
        rollout_(context, ddim_steps(schedule, options_.sample_steps, options_.eta), objective_.thresholds(),
                 Extents<4>{largest_share(options_.sample_batch_size, ranks_.size()), latent[0], latent[1], latent[2]},
                 rollout_options(options_)),
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
  void set_reference(UNet& reference) {
    reference_ = &reference;
    passes_.clear();  // what is captured reads the one before
  }

  /// The averages of the trained weights; null without ema_decay. `swap()` them in to draw or export with them, and out
  /// again.
  Ema<T, Device>* ema() { return ema_ ? &*ema_ : nullptr; }

  /// Runs to max_train_iterations. `progress` is called before the first iteration, during roll-outs and after each
  /// iteration. With an output_dir, metrics go to metrics.jsonl and checkpoints beside it; the same seed gives the same
  /// bits with or without an interruption in between.
  RolloutTrainerReport train(const PromptTokens& prompts, const ProgressCallback& progress = {}) {
    const bool writes = !options_.output_dir.empty() && ranks_.rank() == 0;
    const CheckpointFolder folder(options_.output_dir, options_.checkpoints_total_limit);
    const std::size_t tail = 2 + 2 * rollout_.steps().size();  // per step, then what is counted in all
    std::vector<float> counters(tail + 2), good;
    if (prompts.size() < ranks_.size())
      throw ValueError(message("[", names_.trainer, "] ", prompts.size(), " prompts have nothing for some of ",
                               ranks_.size(), " ranks; start fewer"));
    prepare(prompts, progress);
    TrainingState state = training_state(counters);
    state.settings["prompts"] = fingerprint(prompts);
    if (begin_together(folder, options_.resume && !options_.output_dir.empty(), state, ranks_)) {
      optimizer_.set_step_count(static_cast<index_t>(counters[0]));
      if constexpr (AdamW<T, Device>::has_masters) optimizer_.round_masters();
      guard_.set_skipped(static_cast<index_t>(counters[tail]));
      if (ema_) ema_->set_updates(static_cast<index_t>(counters[tail + 1]));
    }
    if (writes) make_directories(options_.output_dir);
    MetricsLog log(writes ? options_.output_dir + "/metrics.jsonl" : "", state.step);
    ProgressReporter reporter(names_.title, state.step, options_.max_train_iterations, progress);
    BatchOrder order(options_.seed, operation_prompts, prompts.size(), std::min(options_.sample_batch_size, prompts.size()));
    RolloutTrainerReport report;
    MetricValues smoothed;
    const auto shown = [&] {
      MetricValues values = smoothed.empty() ? objective_.shown() : smoothed;
      values.emplace_back("kept", static_cast<double>(kept_in_all(rollout_.statistics())));
      return values;
    };
    const auto save = [&] {
      if (writes && guard_.in_a_row() == 0) folder.save(state, options_.checkpoint_files);
    };
    const auto cancel = [&] {
      ranks_.barrier();  // rank 0 has written
      throw CancelledError(
          message("[", names_.trainer, "] cancelled after iteration ", state.step, " of ", options_.max_train_iterations));
    };
    const auto stopped = [&](MetricValues values) {
      return any_rank(ranks_, !reporter.report(state.step, std::move(values)));
    };
    if (stopped({})) cancel();

    while (state.step < options_.max_train_iterations) {
      const auto rows = order.at(state.step);
      enter(LpoStage::text);
      const auto policy_prompts = encode(policy_text_, prompts.ids, prompts.tokens, rows);
      bool cancelled = false;  // until the roll-out is over, weights are those of the last iteration
      std::string not_a_number;
      try {
        roll_out(prompts, rows, policy_prompts, static_cast<std::uint32_t>(state.step),
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
      if (guard_.in_a_row() == 0) good = counters;
      const double norm = train_on_kept(policy_prompts, static_cast<std::uint32_t>(state.step));
      if (guard_.exhausted()) {
        const std::string name = save_good(folder, writes, state, counters, good);
        ranks_.barrier();
        guard_.stop(names_.trainer, writes ? options_.output_dir : "", name);
      }
      ++state.step;

      for (std::size_t i = 0, drawn = 0; i < rollout_.steps().size(); ++i) {
        if (drawn == rollout_.statistics().size()) break;
        const StepStatistics& step = rollout_.statistics()[drawn];
        if (step.timestep != rollout_.steps()[i].timestep) continue;  // a step that compared nothing
        counters[2 + 2 * i] += static_cast<float>(step.kept);
        counters[3 + 2 * i] += static_cast<float>(rows.size());
        ++drawn;
      }
      count_steps(counters);
      counters[1] += static_cast<float>(dealt_.total());
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
  using Dealt = DealtItems<typename Objective::Store, Device>;

  static constexpr std::uint32_t operation_prompts = 0x3001, operation_calibration = 0x3002;
  static constexpr std::uint32_t calibration_iteration = 0x400000;  // roll-outs of their own, apart from the run's

  void enter(LpoStage stage) {
    if (options_.on_stage) options_.on_stage(stage);
  }

  /// The denoiser and the scorer as the roll-out sees them: each tells when it begins.
  struct RolloutStages {
    RolloutTrainer& trainer;

    void predict(View<const Latent, 4, Device> latents, double timestep, View<Latent, 4, Device> prediction) {
      trainer.enter(LpoStage::denoising);
      if constexpr (requires { trainer.scorer_.known_prediction(timestep, prediction); })
        if (trainer.scorer_.known_prediction(timestep, prediction)) return;
      trainer.denoiser_.predict(latents, timestep, prediction);
    }
    void score(View<const Latent, 4, Device> latents, int timestep, std::span<float> scores)
      requires(StepScorer<Scorer, Latent, Device>)
    {
      trainer.enter(LpoStage::scoring);
      trainer.scorer_.score(latents, timestep, scores);
    }
    void score(View<const Latent, 4, Device> latents, const GaussianStep& step, std::span<float> scores)
      requires(TransitionScorer<Scorer, Latent, Device>)
    {
      trainer.enter(LpoStage::scoring);
      trainer.scorer_.score(latents, step, scores);
    }
    void continue_with(std::span<const int> chosen) {
      if constexpr (requires { trainer.scorer_.continue_with(chosen); }) trainer.scorer_.continue_with(chosen);
    }
  };

  /// Rolls out this rank's share of the prompts number `rows`, whose states `all` are.
  void roll_out(const PromptTokens& prompts, const std::vector<index_t>& rows, const PromptBatch<T, Device>& all,
                std::uint32_t iteration, const StepCallback& go_on) {
    const Share share = own_share(ranks_, std::ssize(rows));
    const std::vector<index_t> own(rows.begin() + share.begin, rows.begin() + share.end);
    PromptBatch<T, Device> part;
    if (share.size() < std::ssize(rows)) part = encode(policy_text_, prompts.ids, prompts.tokens, own);
    const PromptBatch<T, Device>& policy_prompts = share.size() < std::ssize(rows) ? part : all;
    denoiser_.set_prompts(policy_prompts);
    const auto picked = picked_ids(prompts.reward_ids, prompts.reward_tokens, own);
    scorer_.set_prompts(policy_prompts, std::span<const std::int32_t>(picked), share.size());
    rollout_.set_part(share.begin, std::ssize(rows));

    RolloutStages stages{*this};
    objective_.begin_iteration();
    if constexpr (Objective::keeps_pairs)
      rollout_.run(stages, stages, iteration, share.size(), go_on);
    else
      rollout_.run(stages, stages, iteration, share.size(), go_on, [this](const StepCandidates<Latent, Device>& drawn) {
        return objective_.keep(context_, rollout_.steps()[static_cast<std::size_t>(drawn.step)], drawn);
      });
    rollout_.set_statistics(of_all_ranks(rollout_.statistics()));
  }

  std::vector<StepStatistics> of_all_ranks(std::span<const StepStatistics> own) {
    const auto all = gather_values(ranks_, std::vector<StepStatistics>(own.begin(), own.end()));
    std::vector<StepStatistics> merged(all.begin(), all.begin() + std::ssize(own));
    for (std::size_t i = own.size(); i < all.size(); ++i) merged[i % own.size()].merge(all[i]);
    return merged;
  }

  /// Lets the objective look at roll-outs of the reference model. They depend on the seed alone, so a resumed run finds
  /// the same numbers.
  void prepare(const PromptTokens& prompts, const ProgressCallback& progress) {
    const auto plain = tape_.without_adapters();
    BatchOrder order(options_.seed, operation_calibration, prompts.size(), std::min(options_.sample_batch_size, prompts.size()));
    ProgressReporter reporter(names_.title, 0, options_.max_train_iterations, progress);
    objective_.prepare(ranks_, rollout_, [&](int i) {
      const auto rows = order.at(i);
      const auto policy_prompts = encode(policy_text_, prompts.ids, prompts.tokens, rows);
      try {
        roll_out(prompts, rows, policy_prompts, calibration_iteration + static_cast<std::uint32_t>(i),
                 [&](int, int) { return !any_rank(ranks_, !reporter.report(0)); });
      } catch (const CancelledError&) {
        throw CancelledError(message("[", names_.trainer, "] cancelled while thresholds were looked for; checkpoints are as they were"));
      }
    });
  }

  static RolloutOptions rollout_options(const RolloutTrainerOptions& options) {
    RolloutOptions rollout = options.rollout;
    rollout.seed = options.seed;
    rollout.keep_pairs = Objective::keeps_pairs;
    return rollout;
  }

  static MetricValues smooth(MetricValues average, const MetricValues& values) {
    if (average.empty()) return values;
    for (std::size_t i = 0; i < values.size(); ++i) average[i].second = 0.9 * average[i].second + (1 - 0.9) * values[i].second;
    return average;
  }

  /// Steps that were left out changed nothing: the weights are those from before the first of them. Goes back to its
  /// iteration, and returns the name of that checkpoint, which is written if need be; empty without an output_dir.
  std::string save_good(const CheckpointFolder& folder, bool writes, TrainingState& state, std::vector<float>& counters,
                        const std::vector<float>& good) {
    if (guard_.in_a_row() > 0) {
      state.step = guard_.first_iteration();
      std::copy(good.begin(), good.end(), counters.begin());
    }
    count_steps(counters);
    if (!writes) return "";
    if (!folder.contains(state.step)) folder.save(state, options_.checkpoint_files);
    return options_.output_dir + "/checkpoint-" + std::to_string(state.step);
  }

  TrainingState training_state(std::vector<float>& counters) {
    static_assert(std::is_same_v<Latent, float>, "lpo RolloutTrainer: networks are float, bfloat16 or half");
    TrainingState state;
    auto& s = state.settings;
    s["trainer"] = names_.method;
    s["seed"] = options_.seed;
    s["sample_batch_size"] = options_.sample_batch_size;
    s["train_batch_size"] = options_.train_batch_size;
    s["micro_batch_size"] = micro_batch_items(options_);
    s["sample_steps"] = options_.sample_steps;
    s["guidance_scale"] = options_.guidance_scale;
    s["eta"] = options_.eta;
    s["candidates"] = options_.rollout.candidates;
    objective_.add_settings(s);
    s["learning_rate"] = options_.learning_rate;
    s["weight_decay"] = options_.optimizer.weight_decay;
    s["max_grad_norm"] = options_.max_grad_norm;
    s["lr_warmup_steps"] = options_.lr_scheduler == LearningRateKind::constant ? index_t{0} : options_.lr_warmup_steps;
    s["divert_steps"] = {options_.rollout.divert_start_step, options_.rollout.divert_end_step};
    s["lrm_timestep"] = options_.rollout.lrm_timestep == LrmTimestep::departure ? "departure" : "arrival";
    s["ema_decay"] = options_.ema_decay;
    s["thresholds"] = rollout_.thresholds();
    if (options_.loss_scale != 1) s["loss_scale"] = options_.loss_scale;
    if (options_.half_scores) s["half_scores"] = true;
    add_optimizer_buffers(state, store_, optimizer_, ema_);
    state.buffers.push_back({"counters", counters});
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

  static std::vector<std::int32_t> picked_ids(const std::vector<std::int32_t>& ids, index_t tokens,
                                              const std::vector<index_t>& rows) {
    std::vector<std::int32_t> picked;
    for (const index_t row : rows) picked.insert(picked.end(), ids.begin() + row * tokens, ids.begin() + (row + 1) * tokens);
    return picked;
  }

  template <class Encoder>
  PromptBatch<T, Device> encode(Encoder& encoder, const std::vector<std::int32_t>& ids, index_t tokens,
                                const std::vector<index_t>& rows) {
    const auto picked = picked_ids(ids, tokens, rows);
    return encode_prompts<T>(tape_, encoder, std::span<const std::int32_t>(picked), static_cast<index_t>(rows.size()));
  }

  /// One pass over the kept items in random order: one optimiser step per mini-batch, each with one policy forward, one
  /// reference forward and one backward per item. Returns the largest gradient norm.
  double train_on_kept(const PromptBatch<T, Device>& prompts, std::uint32_t iteration) {
    double largest_norm = 0;
    dealt_.deal(context_, ranks_, objective_.items(rollout_), options_.seed, iteration, options_.train_batch_size);
    for (const auto& batch : dealt_.batches()) {
      if (guard_.exhausted()) break;
      largest_norm = std::max(largest_norm, train_on_batch(prompts, batch, iteration));
    }
    objective_.metrics() = merged_over_ranks(ranks_, objective_.metrics());
    return largest_norm;
  }

  /// One optimiser step. The gradient of the batch's mean loss is the sum over ranks and micro-batches, each with its
  /// share.
  double train_on_batch(const PromptBatch<T, Device>& prompts, const typename Dealt::Batch& batch,
                        std::uint32_t iteration) {
    store_.reset_gradients();
    const std::span<const int> items(batch.own);
    const auto size = static_cast<std::size_t>(micro_batch_items(options_));
    for (std::size_t begin = 0; begin < items.size(); begin += size) {
      const auto part = items.subspan(begin, std::min(items.size() - begin, size));
      objective_.gather(context_, dealt_.items(), part);
      add_gradients(prompts, static_cast<double>(part.size()) / static_cast<double>(batch.total), begin == 0);
    }
    enter(LpoStage::optimizer);
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

  /// What forward and backward of mini-batches of one size read, and what is captured of them.
  struct TrainingPass {
    detail::ConditionBuffers<UNet> condition;  ///< rows [u ; c]
    Tensor<T, 4, Device> latents;
    Tensor<Latent, 4, Device> cotangent;  ///< of the guided prediction
    RepeatedWork<Device> work{3};         ///< the reference's pass, the policy's, backward
    Var<Latent, 4, Device> reference, prediction;
    std::vector<Slot*> reached;  ///< weights whose gradients backward writes
  };

  /// Forward and backward of the mini-batch that the objective has gathered, whose mean loss counts `share`. `first`: its
  /// gradients are stored, those of others add up. The loss waits for the device, so it lies between what is captured.
  void add_gradients(const PromptBatch<T, Device>& prompts, double share, bool first) {
    std::vector<index_t> rows;
    std::vector<float> timesteps;
    std::vector<GaussianStep> steps;
    for (const PairRecord& record : objective_.records()) {
      rows.push_back(record.prompt);
      timesteps.push_back(static_cast<float>(record.timestep));
      steps.push_back(rollout_.steps()[static_cast<std::size_t>(record.step)]);
    }
    TrainingPass& pass = passes_[{std::ssize(rows), first}];
    using Buffers = detail::ConditionBuffers<UNet>;
    const auto halves = detail::unguided_and_guided(std::span<const index_t>(rows));
    bool known = pass.condition.set_texts(names_.trainer, context_, prompts, std::span<const index_t>(halves));
    known = pass.condition.set_timesteps(context_, timesteps) && known;
    known = Buffers::fit(pass.latents, objective_.x_t().extents) && known;
    if (!known) pass.work.reset();
    evaluate(&context_, pass.latents.view(), objective_.x_t());
    const auto predict = [&](UNet& unet) {
      return guided_prediction(unet, pass.condition.on(tape_), constant(tape_, pass.latents), options_.guidance_scale);
    };

    pass.work.begin(context_);
    enter(LpoStage::reference);
    pass.work.run(context_, [&] {
      const auto guard = tape_.inference();
      const auto plain = tape_.without_adapters();
      pass.reference = predict(reference_ != nullptr ? *reference_ : policy_);
    });
    enter(LpoStage::policy);
    pass.work.run(context_, [&] { pass.prediction = predict(policy_); });
    set_cotangent(pass, std::span<const GaussianStep>(steps), share);
    pass.work.run(context_, [&] { backward(pass.prediction, View<const Latent, 4, Device>(pass.cotangent.view())); });
    if (pass.work.replays()) {
      for (Slot* slot : pass.reached) slot->written = true;
    } else {
      pass.reached.clear();
      for (const auto& entry : store_.entries())
        if (entry.parameter->slot.written) pass.reached.push_back(&entry.parameter->slot);
    }
    tape_.clear();
  }

  /// d loss / d prediction of a pass, times `share` and the loss scale.
  void set_cotangent(TrainingPass& pass, std::span<const GaussianStep> steps, double share) {
    const auto& extents = pass.prediction.extents();
    if (pass.cotangent.data() == nullptr) pass.cotangent = Tensor<Latent, 4, Device>(extents);
    const auto start = context_.activations().mark();
    auto* const position = tape_.position();
    Slot* const slot = tape_.make_external_slot(pass.prediction.data(), static_cast<std::size_t>(extents.size()) * sizeof(Latent), true);
    slot->gradient = reinterpret_cast<std::byte*>(pass.cotangent.data());
    slot->persistent = true;  // the gradient is not the tape's
    const Var<Latent, 4, Device> prediction(&tape_, slot, View<Latent, 4, Device>(pass.prediction.data(), extents));
    const auto loss = objective_.loss(prediction, pass.reference.view(), steps);
    const auto weight = static_cast<Latent>(share * options_.loss_scale);
    const View<Latent, 1, Device> one(tape_.template allocate<Latent>(1), Extents<1>{1});
    context_.copy_from_host(one.data, &weight, sizeof(weight));
    detail::add_gradient(loss, View<const Latent, 1, Device>(one));
    tape_.run_back_to(position);
    if (!slot->written) context_.fill_zero(slot->gradient, slot->bytes);
    context_.activations().rewind(start);
  }

  MetricValues log_line(double norm, double epoch) const {
    RunningMoments scores;
    for (const auto& step : rollout_.statistics()) scores.merge(step.scores);
    MetricValues line{{"epoch", epoch}, {"reward_mean", scores.mean()}, {"reward_std", scores.deviation()}};
    const auto add = [&](const MetricValues& columns) { line.insert(line.end(), columns.begin(), columns.end()); };
    add(objective_.rollout_columns(rollout_));
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
  UNet& policy_;
  UNet* reference_ = nullptr;
  ParameterStore<T, Device>& store_;
  PolicyText& policy_text_;
  RolloutTrainerOptions options_;
  Objective objective_;
  Tape<Device> tape_;
  GuidedDenoiser<UNet> denoiser_;
  Scorer scorer_;
  Rollout<Latent, Device> rollout_;
  Dealt dealt_;
  std::map<std::pair<index_t, bool>, TrainingPass> passes_;  ///< by items, and whether gradients are stored
  AdamW<T, Device> optimizer_;
  std::optional<Ema<T, Device>> ema_;
  FiniteGuard guard_;
  double rate_ = 0;  // of the last optimiser step
};

}  // namespace lpo::inline LPO_ABI
