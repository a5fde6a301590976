// SPDX-License-Identifier: MIT
// PairObjective: what LPO and SPO train on — clear win-lose pairs of one step, with the clipped step-level DPO loss.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <lpo/preference/lpo_loss.hpp>
#include <lpo/preference/rollout.hpp>
#include <lpo/train/rollout_trainer_options.hpp>
#include <lpo/train/threshold_calibration.hpp>

namespace lpo::inline LPO_ABI {

/// LPO's options; SPO has the same, with other values.
struct LpoTrainerOptions : RolloutTrainerOptions {
  ThresholdOptions threshold;
  double threshold_quantile = 0;  ///< > 0: fit threshold.minimum and maximum to this quantile of the gaps before training
  int calibration_rollouts = 2;   ///< roll-outs of the reference model that this takes
  /// Win and lose of a pair start from one latent and share the passes of policy and reference. false: each has its own, as
  /// in the official code, for the same numbers at twice the cost.
  bool dedup_forward = true;
  LpoLossOptions loss;
};

/// An objective of RolloutTrainer. T: latents.
template <class T, class Device>
class PairObjective {
 public:
  static constexpr bool keeps_pairs = true;
  using Store = PairStore<T, Device>;

  /// `micro_batch` pairs of latents [h, w, c] are gathered at a time.
  PairObjective(const LpoTrainerOptions& options, const NoiseSchedule& schedule, index_t micro_batch,
                const Extents<3>& latent)
      : schedule_(schedule), threshold_(options.threshold), quantile_(options.threshold_quantile),
        calibration_rollouts_(options.calibration_rollouts), dedup_forward_(options.dedup_forward), loss_(options.loss),
        small_bucket_includes_t1_(options.small_bucket_includes_t1), steps_(options.sample_steps),
        batch_(micro_batch, latent) {}

  /// One per step.
  std::vector<double> thresholds() const { return pair_thresholds(schedule_, steps_, threshold_); }

  /// Before training; `draw(i)` draws a roll-out of the reference model, the same one in every run with this seed.
  template <class Ranks, class Draw>
  void prepare(Ranks& ranks, Rollout<T, Device>& rollout, const Draw& draw) const {
    if (quantile_ > 0) calibrate_thresholds(ranks, rollout, schedule_, threshold_, quantile_, calibration_rollouts_, draw);
  }

  /// What may not change in a resumed run.
  template <class Json>
  void add_settings(Json& settings) const {
    settings["beta"] = loss_.beta;
    settings["clip"] = loss_.clip;
    settings["stable_logsigmoid"] = loss_.stable_logsigmoid;
    if (!dedup_forward_) settings["dedup_forward"] = false;
  }

  void begin_iteration() { metrics_ = {}; }

  /// What the last roll-out left.
  const Store& items(const Rollout<T, Device>& rollout) const { return rollout.pairs(); }
  /// Takes a mini-batch of `items`.
  void gather(Context<Device>& context, const Store& items, std::span<const int> numbers) {
    items.gather(context, numbers, batch_);
  }
  std::span<const PairRecord> records() const { return batch_.records(); }
  View<const T, 4, Device> x_t() const { return batch_.x_t(); }
  /// How often x_t() is to be predicted: with 2, all rows for win and then all for lose.
  index_t rows_of_item() const { return dedup_forward_ ? 1 : 2; }

  /// The mean loss of the mini-batch; its numbers join those of the iteration.
  template <int Channels>
  Var<T, 1, Device> loss(const Var<T, 4, Device, Channels>& prediction, View<const T, 4, Device> reference,
                         std::span<const GaussianStep> steps) {
    return lpo_loss(prediction, reference, batch_.x_t(), batch_.x_win(), batch_.x_lose(), steps, loss_, &metrics_);
  }

  /// Of the iteration.
  LpoMetrics& metrics() { return metrics_; }
  /// Items that this iteration has trained on.
  index_t trained() const { return metrics_.pairs; }
  /// For the progress line, the loss first.
  MetricValues shown() const {
    return {{"loss", metrics_.loss}, {"implicit_acc", metrics_.implicit_accuracy}, {"margin", metrics_.margin}};
  }

  /// The names are those of the released code's log.
  MetricValues rollout_columns(const Rollout<T, Device>& rollout) const {
    const auto kept = kept_buckets(rollout.statistics(), small_bucket_includes_t1_);
    return {{"kept", static_cast<double>(kept_in_all(rollout.statistics()))},
            {"kept_t_very_large", kept.very_large * 1.0},
            {"kept_t_large", kept.large * 1.0},
            {"kept_t_middle", kept.middle * 1.0},
            {"kept_t_small", kept.small * 1.0}};
  }
  MetricValues training_columns() const {
    return {{"train_loss", metrics_.loss},
            {"train_ratio_win", metrics_.ratio_win},
            {"train_ratio_lose", metrics_.ratio_lose},
            {"implicit_acc", metrics_.implicit_accuracy},
            {"train_margin", metrics_.margin},
            {"win_clipped", metrics_.win_clipped},
            {"lose_clipped", metrics_.lose_clipped},
            {"policy_density_win", metrics_.density_win},
            {"policy_density_lose", metrics_.density_lose},
            {"ref_density_win", metrics_.reference_density_win},
            {"ref_density_lose", metrics_.reference_density_lose}};
  }

 private:
  const NoiseSchedule& schedule_;
  ThresholdOptions threshold_;
  double quantile_;
  int calibration_rollouts_;
  bool dedup_forward_;
  LpoLossOptions loss_;
  bool small_bucket_includes_t1_;
  int steps_;
  Store batch_;
  LpoMetrics metrics_;
};

}  // namespace lpo::inline LPO_ABI
