// SPDX-License-Identifier: MIT
// What a run of RolloutTrainer counts, and what may not change when it is resumed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <lpo/base/error.hpp>
#include <lpo/base/fnv1a.hpp>
#include <lpo/diffusion/gaussian_step.hpp>
#include <lpo/preference/rollout_statistics.hpp>
#include <lpo/train/rollout_trainer_options.hpp>

namespace lpo::inline LPO_ABI {

/// Counts over a run of so many sampling steps. A checkpoint keeps them: floats, because checkpoints are of floats; exact
/// up to 2^24.
class RolloutCounters {
 public:
  explicit RolloutCounters(std::size_t steps) : values_(4 + 2 * steps) {}

  index_t optimizer_steps() const { return whole(0); }
  index_t items() const { return whole(1); }  ///< trained on
  index_t skipped_steps() const { return whole(values_.size() - 2); }
  index_t ema_updates() const { return whole(values_.size() - 1); }

  void set_optimizer(index_t steps, index_t skipped, index_t ema_updates) {
    values_[0] = static_cast<float>(steps);
    values_[values_.size() - 2] = static_cast<float>(skipped);
    values_[values_.size() - 1] = static_cast<float>(ema_updates);
  }

  void add_items(index_t count) { values_[1] += static_cast<float>(count); }

  /// What a roll-out of `prompts` along the chain kept; steps that compared nothing have no statistics.
  void add_rollout(std::span<const GaussianStep> chain, std::span<const StepStatistics> statistics, index_t prompts) {
    for (std::size_t i = 0, drawn = 0; i < chain.size() && drawn < statistics.size(); ++i) {
      if (statistics[drawn].timestep != chain[i].timestep) continue;
      values_[2 + 2 * i] += static_cast<float>(statistics[drawn].kept);
      values_[3 + 2 * i] += static_cast<float>(prompts);
      ++drawn;
    }
  }

  void write_to(RolloutTrainerReport& report, std::span<const GaussianStep> chain) const {
    report.pairs = items();
    for (std::size_t i = 0; i < chain.size(); ++i) {
      report.timesteps.push_back(chain[i].timestep);
      report.kept_per_step.push_back(static_cast<double>(values_[2 + 2 * i]));
      report.drawn_per_step.push_back(static_cast<double>(values_[3 + 2 * i]));
    }
  }

  /// The memory that a checkpoint reads and writes, at one address.
  std::span<float> values() { return values_; }
  /// Takes the counts of an earlier moment.
  void go_back(const RolloutCounters& earlier) { std::copy(earlier.values_.begin(), earlier.values_.end(), values_.begin()); }

 private:
  index_t whole(std::size_t i) const { return static_cast<index_t>(values_[i]); }

  std::vector<float> values_;
};

/// Adds the options that a resumed run must share with its beginning.
template <class Json>
void add_rollout_settings(Json& s, const RolloutTrainerOptions& options) {
  s["seed"] = options.seed;
  s["sample_batch_size"] = options.sample_batch_size;
  s["train_batch_size"] = options.train_batch_size;
  s["micro_batch_size"] = micro_batch_items(options);
  s["sample_steps"] = options.sample_steps;
  s["guidance_scale"] = options.guidance_scale;
  s["eta"] = options.eta;
  s["candidates"] = options.rollout.candidates;
  s["learning_rate"] = options.learning_rate;
  s["max_grad_norm"] = options.max_grad_norm;
  s["lr_warmup_steps"] = options.lr_scheduler == LearningRateKind::constant ? index_t{0} : options.lr_warmup_steps;
  s["divert_steps"] = {options.rollout.divert_start_step, options.rollout.divert_end_step};
  s["lrm_timestep"] = options.rollout.lrm_timestep == LrmTimestep::departure ? "departure" : "arrival";
  s["ema_decay"] = options.ema_decay;
  if (options.loss_scale != 1) s["loss_scale"] = options.loss_scale;
  if (options.half_scores) s["half_scores"] = true;
  if (options.half_reference) s["half_reference"] = true;
}

/// Tells one list of prompts from another: their number, and FNV-1a of all ids.
inline std::string fingerprint(const PromptTokens& prompts) {
  Fnv1a hash;
  for (const auto* ids : {&prompts.ids, &prompts.reward_ids})
    for (const std::int32_t id : *ids) hash.add(std::uint64_t{static_cast<std::uint32_t>(id)});
  return message(prompts.size(), " prompts, ", hash.value());
}

}  // namespace lpo::inline LPO_ABI
