// SPDX-License-Identifier: MIT
// DpoTrainer: Diffusion-DPO — trains a policy on preferred and rejected images by how well each is denoised.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <lpo/diffusion/prediction.hpp>
#include <lpo/distributed/collectives.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/optim/adamw.hpp>
#include <lpo/optim/clip.hpp>
#include <lpo/optim/ema.hpp>
#include <lpo/optim/schedule.hpp>
#include <lpo/preference/diffusion_dpo_loss.hpp>
#include <lpo/train/finite_guard.hpp>
#include <lpo/train/guided_denoiser.hpp>
#include <lpo/train/latent_pairs.hpp>
#include <lpo/train/latent_scorer.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/optimizer_buffers.hpp>
#include <lpo/train/progress.hpp>
#include <lpo/train/training_checkpoint.hpp>

namespace lpo::inline LPO_ABI {

/// Defaults are SD1.5's of the paper (arXiv 2311.12908) and its code; the effective batch there is 2048 pairs.
struct DpoTrainerOptions {
  index_t max_train_steps = 2000;
  index_t train_batch_size = 2048;  ///< pairs per optimiser step
  index_t micro_batch_size = 1;     ///< pairs of one forward and backward; gradients add up to the batch's. 0 = all at once
  double beta_dpo = 5000;
  double proportion_empty_prompts = 0.2;  ///< chance that a pair is trained under the empty prompt
  PredictionType prediction_type = PredictionType::epsilon;
  double learning_rate = 2.048e-5;
  LearningRateKind lr_scheduler = LearningRateKind::constant_with_warmup;
  index_t lr_warmup_steps = 500;
  AdamWOptions optimizer{.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 1e-2};
  double max_grad_norm = 1.0;  ///< 0 turns clipping off; the norm is logged either way
  double ema_decay = 0;        ///< > 0: keep an exponential moving average of the trained weights beside them
  int max_skipped_steps = 10;  ///< stop after so many steps in a row without finite gradients (FiniteGuard); 0 = never
  bool gradient_checkpointing = false;
  double loss_scale = 1;       ///< multiplies gradients on their way; for half, which has no numbers below 6e-8. A power of two
  double max_seconds = 0;      ///< stop after so many seconds and report it, which gives up reproducibility; 0 = never
  index_t checkpointing_steps = 0;  ///< a checkpoint every so many steps; 0 = none
  int checkpoints_total_limit = 2;  ///< how many are kept; 0 = all
  std::uint64_t seed = 42;
  std::string output_dir;
  bool resume = false;  ///< go on from the newest checkpoint; without it a folder that has checkpoints is refused
  std::map<std::string, std::string> more_settings;  ///< of the program: compared on resume, as the trainer's own are
  /// Called after each step with its line of the log; on rank 0 only.
  std::function<void(index_t step, const MetricValues&)> on_metrics;
  /// Adds files of its own to a checkpoint's folder; on rank 0 only.
  std::function<void(const std::string& folder)> checkpoint_files;
};

/// What a run did.
struct DpoTrainerReport {
  index_t steps = 0;
  index_t pairs = 0;  ///< pairs with a preference in the data; ties are dropped
  index_t skipped_steps = 0;  ///< left out because loss or gradients were not finite
  bool time_limit_reached = false;
};

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
      : ranks_(begin_alike(std::move(ranks), context, store)), context_(context), policy_(policy), store_(store), text_(text), schedule_(schedule), options_(std::move(options)),
        tape_(context),
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
  void set_reference(UNet& reference) { reference_ = &reference; }

  /// The averages of the trained weights; null without ema_decay. `swap()` them in to draw or export with them, and out
  /// again.
  Ema<T, Device>* ema() { return ema_ ? &*ema_ : nullptr; }

  /// Runs to max_train_steps. `progress` is called before the first step and after each. The same seed and data give the
  /// same bits, with or without an interruption in between. After max_skipped_steps steps in a row that were not finite, a
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
      if (writes && guard_.in_a_row() == 0) folder.save(state, options_.checkpoint_files);
    };
    const auto cancel = [&] {
      ranks_.barrier();  // rank 0 has written
      throw CancelledError(message("[DpoTrainer] cancelled after step ", state.step, " of ", options_.max_train_steps));
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
      const StepResult result = step(data, pairs, state.step);
      if (guard_.exhausted()) {
        // Steps that were left out changed nothing: these are still the last good weights.
        state.step = guard_.first_iteration();
        std::copy(good.begin(), good.end(), counters.begin());
        const std::string name = message(options_.output_dir, "/checkpoint-", state.step);
        if (writes && !folder.contains(state.step)) folder.save(state, options_.checkpoint_files);
        ranks_.barrier();
        guard_.stop("DpoTrainer", writes ? options_.output_dir : "", writes ? name : "",
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
  };

  /// Timestep of a pair, and whether it is trained under the empty prompt.
  struct Choice {
    int timestep;
    bool prompted;
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
  StepResult step(const LatentPairs& data, std::span<const LatentPairs::Pair> pairs, index_t step_index) {
    const auto counter = static_cast<std::uint32_t>(step_index);
    RandomStream random(options_.seed, operation_choices, counter);
    std::vector<Choice> choices(pairs.size());
    for (Choice& choice : choices) {
      choice.timestep = static_cast<int>(random.uniform_int(static_cast<std::uint32_t>(schedule_.train_timesteps())));
      choice.prompted = !random.bernoulli(static_cast<float>(options_.proportion_empty_prompts));
    }
    const Share own = own_share(ranks_, std::ssize(pairs));
    const index_t size = options_.micro_batch_size > 0 ? options_.micro_batch_size : own.size();
    StepResult result;
    store_.reset_gradients();
    for (index_t begin = own.begin; begin < own.end; begin += size) {
      const auto first = static_cast<std::size_t>(begin), count = static_cast<std::size_t>(std::min(own.end - begin, size));
      add_gradients(data, pairs.subspan(first, count), std::span(choices).subspan(first, count), begin,
                    static_cast<double>(count) / static_cast<double>(pairs.size()), counter, result.metrics);
    }
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

  /// Forward and backward of some pairs of a step, of which the first is number `first`, and whose mean loss counts `share`.
  void add_gradients(const LatentPairs& data, std::span<const LatentPairs::Pair> pairs, std::span<const Choice> choices,
                     index_t first, double share, std::uint32_t counter, DiffusionDpoMetrics& metrics) {
    const auto n = static_cast<index_t>(pairs.size());
    const Extents<4> extents{2 * n, data.height, data.width, data.channels};
    std::vector<float> noisy, target, timesteps;
    std::vector<std::int32_t> ids;
    std::vector<index_t> rows;
    for (int side = 0; side < 2; ++side)
      for (index_t i = 0; i < n; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const Choice& choice = choices[at];
        add_row(data, side == 0 ? pairs[at].first : pairs[at].second, choice.timestep, first + i, side, counter, noisy, target);
        timesteps.push_back(static_cast<float>(choice.timestep));
        rows.push_back(choice.prompted ? i : detail::empty_prompt);
        const auto* prompt = data.token_ids.data() + data.prompt_of(pairs[at]) * data.tokens;
        if (side == 0) ids.insert(ids.end(), prompt, prompt + data.tokens);
      }
    const auto prompts = encode_prompts<T>(tape_, text_, std::span<const std::int32_t>(ids), n);
    const auto latents = Tensor<Latent, 4, Device>::from(extents, noisy), targets = Tensor<Latent, 4, Device>::from(extents, target);
    const auto predict = [&](UNet& unet) -> Var<Latent, 4, Device> {
      const auto input = detail::network_input<T>(tape_, View<const Latent, 4, Device>(latents.view()));
      const auto prediction = conditional_prediction(unet, prompts, std::span<const index_t>(rows), input,
                                                     std::span<const float>(timesteps));
      if constexpr (std::is_same_v<T, Latent>)
        return prediction;
      else
        return Var<Latent, 4, Device>(1.0 * prediction);
    };
    const auto reference = [&] {
      const auto guard = tape_.inference();
      const auto plain = tape_.without_adapters();
      return predict(reference_ != nullptr ? *reference_ : policy_);
    }();
    const auto loss = diffusion_dpo_loss(predict(policy_), reference.view(), targets.view(), options_.beta_dpo, &metrics);
    const auto weight = Tensor<Latent, 1, Device>::full(Extents<1>{1}, share * options_.loss_scale);
    backward(loss, weight.view());
    tape_.clear();
  }

  /// Appends sqrt(abar) x_0 + sqrt(1 - abar) n and what the network should predict for it. Both images of pair `number` of
  /// a step get the same noise n; each draws x_0 from its own posterior. Micro-batches of any size see the same numbers.
  void add_row(const LatentPairs& data, index_t image, int timestep, index_t number, int side, std::uint32_t counter,
               std::vector<float>& noisy, std::vector<float>& target) const {
    const auto size = static_cast<std::size_t>(data.latent_size());
    const auto normals = [&](std::uint32_t operation, std::size_t row) {
      std::vector<float> values(size);
      philox_fill_normal({options_.seed, operation, counter}, values.data(), size, row * size);
      return values;
    };
    const auto pair = static_cast<std::size_t>(number);
    const auto noise = normals(operation_noise, pair);
    std::vector<float> clean(size), deviation(size);
    data.read_posterior(image, clean.data(), deviation.data());
    if (data.has_deviation()) {
      const auto posterior = normals(operation_posterior, 2 * pair + static_cast<std::size_t>(side));
      for (std::size_t k = 0; k < size; ++k) clean[k] += deviation[k] * posterior[k];
    }
    const double abar = schedule_.alpha_bar(timestep);
    const float signal = static_cast<float>(std::sqrt(abar)), spread = static_cast<float>(std::sqrt(1 - abar));
    for (std::size_t k = 0; k < size; ++k) {
      noisy.push_back(signal * clean[k] + spread * noise[k]);
      switch (options_.prediction_type) {
        case PredictionType::epsilon: target.push_back(noise[k]); break;
        case PredictionType::v_prediction: target.push_back(signal * noise[k] - spread * clean[k]); break;
        default: target.push_back(clean[k]);
      }
    }
  }

  Ranks ranks_;
  Context<Device>& context_;
  UNet& policy_;
  UNet* reference_ = nullptr;
  ParameterStore<T, Device>& store_;
  Text& text_;
  const NoiseSchedule& schedule_;
  DpoTrainerOptions options_;
  Tape<Device> tape_;
  AdamW<T, Device> optimizer_;
  std::optional<Ema<T, Device>> ema_;
  FiniteGuard guard_;
};

}  // namespace lpo::inline LPO_ABI
