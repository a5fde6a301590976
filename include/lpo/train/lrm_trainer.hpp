// SPDX-License-Identifier: MIT
// LrmTrainer: trains a latent reward model on preference pairs of latents, noised to a shared random timestep.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/distributed/gather_rows.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/optim/adamw.hpp>
#include <lpo/optim/clip.hpp>
#include <lpo/optim/ema.hpp>
#include <lpo/reward/loss.hpp>
#include <lpo/train/finite_guard.hpp>
#include <lpo/train/lrm_batch.hpp>
#include <lpo/train/lrm_passes.hpp>
#include <lpo/train/lrm_trainer_options.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/optimizer_buffers.hpp>
#include <lpo/train/progress.hpp>
#include <lpo/train/training_checkpoint.hpp>

namespace lpo::inline LPO_ABI {

/// Trains `lrm` (and whatever of `text_encoder` the store holds as trainable). One object per run.
///
/// With several ranks each takes a share of every batch. Options, losses and weights are those of one rank; rank 0
/// writes, and micro_batch_size is of each rank.
template <class Lrm, class TextEncoder, Communicator<typename Lrm::device> Ranks = SoloCommunicator>
class LrmTrainer {
 public:
  using T = typename Lrm::value_type;
  using Device = typename Lrm::device;

  LrmTrainer(Context<Device>& context, Lrm& lrm, TextEncoder& text_encoder, ParameterStore<T, Device>& store,
             const NoiseSchedule& schedule, LrmTrainerOptions options, Ranks ranks = {})
      : ranks_(begin_alike(std::move(ranks), context, store)),
        context_(context),
        lrm_(lrm),
        store_(store),
        schedule_(schedule),
        options_(std::move(options)),
        tape_(context),
        passes_(tape_, lrm, text_encoder, store),
        optimizer_(context, {{store.trainable_values(), store.trainable_gradients(), store.trainable_size()}},
                   options_.optimizer),
        average_(context, optimizer_.spans(), options_.ema_decay, true),
        guard_(options_.max_skipped_steps) {
    if (options_.train_batch_size < 1 || options_.max_train_steps < 0)
      throw ValueError("[LrmTrainer] train_batch_size must be at least 1 and max_train_steps at least 0");
    if (options_.train_batch_size < ranks_.size())
      throw ValueError(message("[LrmTrainer] a batch of ", options_.train_batch_size, " has nothing for some of ",
                               ranks_.size(), " ranks; make train_batch_size larger"));
    if (options_.batch_unit == BatchUnit::prompt && options_.loss.kind != RewardLossOptions::Kind::pair)
      throw ValueError(
          "[LrmTrainer] the contrastive loss needs distinct prompts in a batch; use batch_unit = pair with it");
    if (options_.micro_batch_size < 0 || options_.max_skipped_steps < 0)
      throw ValueError("[LrmTrainer] micro_batch_size and max_skipped_steps must not be negative");
    if (micro_batch() < options_.train_batch_size && options_.loss.kind != RewardLossOptions::Kind::pair)
      throw ValueError("[LrmTrainer] the contrastive loss compares a whole batch; use micro_batch_size = 0 with it");
    if (options_.timestep_interval < 1 || options_.largest_timestep < 1 ||
        options_.largest_timestep >= schedule.train_timesteps())
      throw ValueError(message("[LrmTrainer] timesteps 1, 1 + ", options_.timestep_interval, ", ..., ",
                               options_.largest_timestep, " must lie inside the schedule of ",
                               schedule.train_timesteps()));
    if (options_.compare_between_timestep && options_.batch_unit == BatchUnit::prompt)
      throw ValueError("[LrmTrainer] compare_between_timestep adds units of one pair; use batch_unit = pair with it");
    if (options_.compare_between_timestep && options_.largest_timestep <= options_.timestep_interval)
      throw ValueError("[LrmTrainer] compare_between_timestep needs two timesteps; make timestep_interval smaller");
    if (store.trainable_size() == 0) throw ValueError("[LrmTrainer] the store has no trainable weights");
    tape_.set_checkpointing(options_.gradient_checkpointing);
  }

  /// Runs to max_train_steps. `progress` is called before the first step, after each, and between micro-batches, where to
  /// stop drops the step that is begun. The same seed and data give the same bits, with or without an interruption in
  /// between.
  /// Steps whose loss or gradients are not finite are left out; after max_skipped_steps of them in a row a checkpoint
  /// of the weights before them is saved and FiniteGuard throws.
  LrmTrainerReport train(const LatentPairs& pairs, const LatentPairs& validation,
                         const ProgressCallback& progress = {}) {
    pairs.check();
    validation.check();
    const bool writes = !options_.output_dir.empty() && ranks_.rank() == 0;
    const CheckpointFolder folder(options_.output_dir, options_.checkpoints_total_limit);
    TrainingState state = training_state(pairs);
    if (begin_together(folder, options_.resume && !options_.output_dir.empty(), state, ranks_)) {
      optimizer_.set_step_count(static_cast<index_t>(counters_[optimizer_steps]));
      average_.set_updates(static_cast<index_t>(counters_[optimizer_steps]));
      guard_.set_skipped(static_cast<index_t>(counters_[skipped_steps]));
    }
    if (writes) make_directories(options_.output_dir);
    MetricsLog log(writes ? options_.output_dir + "/metrics.jsonl" : "", state.step);
    ProgressReporter reporter(options_.title, state.step, options_.max_train_steps, progress);
    const auto units = batch_units(pairs, options_.batch_unit);
    const auto won = options_.compare_between_timestep ? won_pairs(pairs) : std::vector<index_t>{};
    const index_t unit_count = std::ssize(units) + std::ssize(won);
    BatchOrder order(options_.seed, operation_order, unit_count, options_.train_batch_size);
    LrmTrainerReport report;
    double smoothed = 0, accuracy_now = -1;
    std::vector<float> good;  // counters of the last good step
    const bool validates = validation.size() > 0;
    const auto cancel = [&](const char* dropped = "") {
      ranks_.barrier();  // rank 0 has written
      throw CancelledError(message("[LrmTrainer] cancelled after step ", state.step, " of ", options_.max_train_steps, dropped));
    };
    const auto stopped = [&](MetricValues shown) {
      return any_rank(ranks_, !reporter.report(state.step, std::move(shown)));
    };
    if (stopped({})) cancel();

    while (state.step < options_.max_train_steps) {
      if (guard_.in_a_row() == 0) good = counters_;
      const StepResult result =
          step(pairs, units, won, order.at(state.step), state.step, [&] { return reporter.report_within_step(); });
      if (result.cut) {  // nothing has changed since the last step
        if (writes && guard_.in_a_row() == 0 && !folder.contains(state.step)) folder.save(state);
        cancel("; the step that was begun is dropped");
      }
      if (guard_.exhausted()) {
        // Steps that were left out changed nothing: these are still the last good weights.
        state.step = guard_.first_iteration();
        std::copy(good.begin(), good.end(), counters_.begin());
        const std::string name = writes ? save_last_good(folder, state, store_) : "";
        ranks_.barrier();
        guard_.stop("LrmTrainer", writes ? options_.output_dir : "", name,
                    "lower learning_rate, warm up longer, or look for damaged pictures");
      }
      ++state.step;
      counters_[optimizer_steps] = static_cast<float>(optimizer_.step_count());
      counters_[skipped_steps] = static_cast<float>(guard_.skipped());
      if (!result.skipped) {
        report.final_loss = result.loss;
        smoothed = smoothed == 0 ? result.loss : 0.95 * smoothed + 0.05 * result.loss;
      }
      MetricValues metrics{
          {"train_loss", result.loss},
          {"implicit_acc", result.accuracy},
          {"train_margin", result.margin},
          {"grad_norm", result.norm},
          {"lr", result.rate},
          {"epoch", static_cast<double>(state.step * options_.train_batch_size) / static_cast<double>(unit_count)},
          {"skipped_steps", static_cast<double>(guard_.skipped())},
          {"global_step", static_cast<double>(optimizer_.step_count())}};
      const bool last = state.step == options_.max_train_steps;
      if (validates && (last || (options_.validation_steps > 0 && state.step % options_.validation_steps == 0))) {
        swap_average();
        accuracy_now = accuracy(validation, options_.validation_timestep);
        metrics.emplace_back("validation_accuracy", accuracy_now);
        // As it is kept: the same accuracy again is not better, the first weights with it stay.
        if (const auto accuracy_kept = static_cast<float>(accuracy_now); accuracy_kept > best_[1]) {
          best_ = {static_cast<float>(state.step), accuracy_kept};
          context_.copy_to_host(best_values_.data(), store_.trainable_values(), best_values_.size() * sizeof(float));
        }
        swap_average();
      }
      log.write(state.step - 1, metrics);
      if (options_.on_metrics && ranks_.rank() == 0) options_.on_metrics(state.step - 1, metrics);
      const bool due = options_.checkpointing_steps > 0 && state.step % options_.checkpointing_steps == 0;
      const auto save = [&] {
        if (writes && guard_.in_a_row() == 0) save_finite(folder, state, store_);
      };
      if (due) save();
      MetricValues shown{{"loss", smoothed}};
      if (accuracy_now >= 0) shown.emplace_back("accuracy", accuracy_now);
      if (stopped(std::move(shown))) {
        if (!due) save();
        cancel();
      }
    }
    report.steps = state.step;
    report.skipped_steps = guard_.skipped();
    report.best_step = static_cast<index_t>(best_[0]);
    report.best_validation_accuracy = std::max(0.0, static_cast<double>(best_[1]));
    swap_average();
    if (options_.export_weights == LrmTrainerOptions::Export::best) use_best_weights();
    if (validates) report.validation_accuracy = accuracy(validation, options_.validation_timestep);
    return report;
  }

  /// After train(): puts the weights of the best validation in place of those that it left (export = last), so that
  /// both can be saved. False, and nothing changes, if there was no validation.
  bool use_best_weights() {
    if (best_[1] < 0) return false;
    context_.copy_from_host(store_.trainable_values(), best_values_.data(), best_values_.size() * sizeof(float));
    return true;
  }

  /// Validation accuracy at one timestep (see pair_accuracy), with noise that depends on the seed and the pair only.
  double accuracy(const LatentPairs& pairs, int timestep) {
    const auto [first, second] = scores(pairs, timestep);
    return pair_accuracy(first, second, pairs.labels);
  }

  /// The same at several timesteps, each with the interval that the number of pairs allows.
  std::vector<TimestepAccuracy> accuracy_by_timestep(const LatentPairs& pairs, const std::vector<int>& timesteps) {
    std::vector<TimestepAccuracy> list;
    for (const int timestep : timesteps)
      list.push_back({timestep, wilson_interval(accuracy(pairs, timestep), pairs.size())});
    return list;
  }

  /// Scores of both images of every pair, noised to `timestep`; each image that is in a pair is run once.
  std::pair<std::vector<float>, std::vector<float>> scores(const LatentPairs& data, int timestep) {
    std::vector<bool> used(static_cast<std::size_t>(data.images()), false);
    for (const auto& pair : data.pairs)
      used[static_cast<std::size_t>(pair.first)] = used[static_cast<std::size_t>(pair.second)] = true;
    std::vector<index_t> images;
    for (index_t i = 0; i < data.images(); ++i)
      if (used[static_cast<std::size_t>(i)]) images.push_back(i);
    std::vector<float> by_image(used.size());
    const auto size = static_cast<std::size_t>(options_.train_batch_size);
    for (std::size_t begin = 0, turn = 0; begin < images.size(); begin += size, ++turn) {
      if (static_cast<int>(turn % static_cast<std::size_t>(ranks_.size())) != ranks_.rank()) continue;
      LrmBatch batch;
      for (std::size_t i = begin; i < std::min(images.size(), begin + size); ++i)
        batch.add_single(data, images[i], timestep);
      batch.add_noise(schedule_, data, noise(operation_validation, static_cast<std::uint32_t>(begin)));
      for_each_part(batch, [&](const LrmBatch& part, std::size_t) {
        const auto z = passes_.scores(part, data);
        for (std::size_t i = 0; i < z.size(); ++i) by_image[static_cast<std::size_t>(part.images[i])] = z[i];
      });
    }
    by_image = sum_of_ranks(ranks_, std::move(by_image));
    std::vector<float> first, second;
    for (const auto& pair : data.pairs) {
      first.push_back(by_image[static_cast<std::size_t>(pair.first)]);
      second.push_back(by_image[static_cast<std::size_t>(pair.second)]);
    }
    return {first, second};
  }

 private:
  static constexpr std::uint32_t operation_order = 0x2001, operation_timestep = 0x2002, operation_noise = 0x2003,
                                 operation_posterior = 0x2004, operation_validation = 0x2005, operation_offset = 0x2006;

  /// What `counters_` holds: floats, because checkpoints are of floats; exact up to 2^24 steps.
  enum Counter { optimizer_steps, skipped_steps, counter_count };

  struct StepResult {
    double loss = 0, norm = 0, rate = 0;
    double accuracy = 0;  ///< of the batch, ties as in pair_accuracy
    double margin = 0;    ///< mean score of the preferred image minus the other's, of pairs that are no ties
    bool skipped = false;
    bool cut = false;  ///< told to stop between micro-batches: gradients are not whole, weights as they were
  };

  index_t micro_batch() const {
    return options_.micro_batch_size > 0 ? std::min(options_.micro_batch_size, options_.train_batch_size)
                                         : options_.train_batch_size;
  }

  TrainingState training_state(const LatentPairs& pairs) {
    static_assert(std::is_same_v<T, float>, "lpo LrmTrainer: training weights are float");
    using Kind = RewardLossOptions::Kind;
    TrainingState state;
    auto& s = state.settings;
    s["trainer"] = "lrm";
    s["pairs"] = pairs.size();
    s["images"] = pairs.images();
    s["seed"] = options_.seed;
    s["train_batch_size"] = options_.train_batch_size;
    s["micro_batch_size"] = micro_batch();
    s["batch_unit"] = options_.batch_unit == BatchUnit::pair ? "pair" : "prompt";
    s["loss"] = options_.loss.kind == Kind::pair ? "pair" : options_.loss.kind == Kind::batch ? "batch" : "both";
    s["batch_coefficient"] = options_.loss.batch_coefficient;
    s["pair_noise"] = options_.shared_pair_noise ? "shared" : "independent";
    if (options_.noise_offset != 0) s["noise_offset"] = options_.noise_offset;
    if (options_.compare_between_timestep) {
      s["compare_between_timestep"] = true;
      s["aux_loss_coeff"] = options_.loss.aux_coefficient;
    }
    s["timestep_interval"] = options_.timestep_interval;
    s["largest_timestep"] = options_.largest_timestep;
    s["learning_rate"] = options_.learning_rate;
    s["lr_scheduler"] = static_cast<int>(options_.lr_scheduler);
    s["lr_warmup_steps"] = options_.lr_warmup_steps;
    s["lr_first_step"] = options_.lr_first_step == FirstStepRate::zero ? "zero" : "official";
    s["max_train_steps"] = options_.max_train_steps;
    s["max_grad_norm"] = options_.max_grad_norm;
    s["ema_decay"] = options_.ema_decay;
    const RewardFeatureOptions& features = lrm_.options;
    s["guidance"] = features.guidance;
    s["multi_scale"] = {features.multi_scale, features.multi_scale_cfg, features.sdxl_first_unguided};
    add_shared_settings(state, options_.optimizer, options_.more_settings);
    const auto count = static_cast<std::size_t>(store_.trainable_size());
    best_values_.resize(count);
    state.buffers = {device_buffer<Device>("weights", store_.trainable_values(), count),
                     device_buffer<Device>("first_moment", optimizer_.first_moment().data, count),
                     device_buffer<Device>("second_moment", optimizer_.second_moment().data, count),
                     device_buffer<Device>("average", average_.average().data, options_.ema_decay > 0 ? count : 0),
                     {"best_weights", best_values_},
                     {"best", best_},
                     {"counters", counters_}};
    return state;
  }

  /// `picked` counts the units, and after them the `won` pairs whose winners are compared between timesteps. `go_on()` is
  /// asked between micro-batches, by each rank of its own.
  template <class GoOn>
  StepResult step(const LatentPairs& data, const std::vector<std::vector<index_t>>& units, const std::vector<index_t>& won,
                  const std::vector<index_t>& picked, index_t step_index, const GoOn& go_on) {
    const auto counter = static_cast<std::uint32_t>(step_index);
    RandomStream random(options_.seed, operation_timestep, counter);
    const auto candidates =
        static_cast<std::uint32_t>((options_.largest_timestep - 1) / options_.timestep_interval + 1);
    const auto drawn = [&](std::uint32_t count) {
      return 1 + options_.timestep_interval * static_cast<int>(random.uniform_int(count));
    };
    LrmBatch all;
    for (const index_t unit : picked) {
      if (unit < std::ssize(units)) {
        all.add_unit(data, units[static_cast<std::size_t>(unit)], drawn(candidates));
        continue;
      }
      const auto pair = static_cast<std::size_t>(won[static_cast<std::size_t>(unit - std::ssize(units))]);
      const auto& label = data.labels[pair];
      const int timestep = drawn(candidates - 1);
      all.add_neighbours(data, label.label_0 > label.label_1 ? data.pairs[pair].first : data.pairs[pair].second, timestep,
                         timestep + options_.timestep_interval, label.num_examples);
    }
    const auto weights = pair_weights(all.labels, options_.loss.aux_coefficient);
    const Share own = own_share(ranks_, std::ssize(picked));
    const auto before = own.begin == 0 ? LrmBatch::Unit{} : all.units[static_cast<std::size_t>(own.begin - 1)];
    LrmBatch batch = all.part(static_cast<std::size_t>(own.begin), static_cast<std::size_t>(own.end));
    auto training_noise = noise(operation_noise, counter);
    training_noise.shared = options_.shared_pair_noise;
    training_noise.offset_scale = static_cast<float>(options_.noise_offset);
    batch.add_noise(schedule_, data, training_noise, before.images);
    StepResult result;
    const LearningRateSchedule rates{options_.lr_scheduler, options_.learning_rate, options_.lr_warmup_steps,
                                     options_.max_train_steps, options_.lr_first_step};
    result.rate = rates(step_index);
    std::vector<float> scores_0, scores_1;
    store_.reset_gradients();
    for_each_part(batch, [&](const LrmBatch& part, std::size_t first_pair) {
      result.cut = result.cut || (first_pair > 0 && !go_on());
      if (result.cut) return;
      const auto weight = std::span<const float>(weights).subspan(before.pairs + first_pair, part.labels.size());
      passes_.add_gradients(part, data, first_pair == 0, [&](const auto& visual, const auto& text) {
        const auto visual_0 = embedding(visual, part.first), visual_1 = embedding(visual, part.second);
        const auto texts = embedding(text, part.prompt_of_pair);
        const auto scale = lrm_.logit_scale.on(tape_);
        {
          const auto guard = tape_.inference();
          append(scores_0, cosine_score(visual_0, texts, scale));
          append(scores_1, cosine_score(visual_1, texts, scale));
        }
        if (options_.loss.kind == RewardLossOptions::Kind::pair) {
          const auto loss = reward_loss(visual_0, visual_1, texts, scale, part.labels, options_.loss, weight);
          result.loss += item(loss);
          return loss;
        }
        // Every rank computes the loss of the whole batch; what is not of one rank's rows counts on rank 0.
        const bool first = ranks_.rank() == 0;
        const auto loss =
            reward_loss(gather_rows(ranks_, visual_0), gather_rows(ranks_, visual_1), gather_rows(ranks_, texts),
                        first ? scale : detail::tape_constant<T>(tape_, std::vector{static_cast<float>(item(scale))}),
                        all.labels, options_.loss, weights);
        result.loss += first ? item(loss) : 0.0;
        return loss;
      });
    });
    result.cut = any_rank(ranks_, result.cut);
    if (result.cut) return result;
    store_.finish_gradients();
    sum_gradients(ranks_, context_, store_.trainable_gradients(), store_.trainable_size());
    result.loss = sum_of_ranks(ranks_, result.loss);
    scores_0 = gather_values(ranks_, scores_0);
    scores_1 = gather_values(ranks_, scores_1);
    result.norm = global_gradient_norm(context_, optimizer_.spans());
    result.accuracy = pair_accuracy(scores_0, scores_1, all.labels);
    result.margin = preferred_margin(scores_0, scores_1, all.labels);
    const double guarded = std::isfinite(result.loss) ? result.norm : result.loss;
    const auto names = [&] { return non_finite_gradients(store_); };
    result.skipped = !guard_.accept(guarded, step_index, optimizer_.step_count(), names);
    if (result.skipped) return result;
    optimizer_.step(result.rate, clip_scale(result.norm, options_.max_grad_norm));
    if (options_.ema_decay > 0) average_.update();
    return result;
  }

  static double preferred_margin(const std::vector<float>& scores_0, const std::vector<float>& scores_1,
                                 const std::vector<PreferenceLabel>& labels) {
    double total = 0;
    index_t count = 0;
    for (std::size_t i = 0; i < labels.size(); ++i) {
      if (labels[i].tie()) continue;
      const double gap = static_cast<double>(scores_0[i]) - static_cast<double>(scores_1[i]);
      total += labels[i].label_0 > labels[i].label_1 ? gap : -gap;
      ++count;
    }
    return count > 0 ? total / static_cast<double>(count) : 0.0;
  }

  void swap_average() {
    if (options_.ema_decay > 0) average_.swap();
  }

  LrmBatch::Noise noise(std::uint32_t operation, std::uint32_t counter) const {
    return {.normal = {options_.seed, operation, counter},
            .posterior = {options_.seed, operation ^ operation_posterior, counter},
            .offset = {options_.seed, operation ^ operation_offset, counter}};
  }

  /// Pairs that are no ties.
  static std::vector<index_t> won_pairs(const LatentPairs& data) {
    std::vector<index_t> won;
    for (index_t i = 0; i < data.size(); ++i)
      if (!data.labels[static_cast<std::size_t>(i)].tie()) won.push_back(i);
    return won;
  }

  /// Calls `use(part, its first pair)` for parts of micro_batch() units.
  template <class Use>
  void for_each_part(const LrmBatch& batch, const Use& use) const {
    const auto size = static_cast<std::size_t>(micro_batch()), count = batch.units.size();
    if (size >= count) return use(batch, std::size_t{0});
    for (std::size_t begin = 0; begin < count; begin += size)
      use(batch.part(begin, std::min(count, begin + size)), begin == 0 ? 0 : batch.units[begin - 1].pairs);
  }

  void append(std::vector<float>& list, const Var<float, 1, Device>& values) const {
    const std::size_t before = list.size(), count = static_cast<std::size_t>(values.extent(0));
    list.resize(before + count);
    context_.copy_to_host(list.data() + before, values.data(), count * sizeof(float));
  }

  Ranks ranks_;
  Context<Device>& context_;
  Lrm& lrm_;
  ParameterStore<T, Device>& store_;
  const NoiseSchedule& schedule_;
  LrmTrainerOptions options_;
  Tape<Device> tape_;
  LrmPasses<Lrm, TextEncoder> passes_;
  AdamW<T, Device> optimizer_;
  Ema<T, Device> average_;
  FiniteGuard guard_;
  std::vector<float> best_values_;
  std::vector<float> best_{0.0f, -1.0f};  ///< step, accuracy
  std::vector<float> counters_ = std::vector<float>(counter_count);
};

}  // namespace lpo::inline LPO_ABI
