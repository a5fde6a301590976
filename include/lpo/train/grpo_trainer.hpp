// SPDX-License-Identifier: MIT
// GrpoTrainer: step-wise GRPO with an LRM's scores as rewards; all candidates of every step are trained.
#pragma once

#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include <lpo/preference/candidate_store.hpp>
#include <lpo/preference/grpo.hpp>
#include <lpo/train/prompted_latent_scorer.hpp>
#include <lpo/train/rollout_trainer.hpp>

namespace lpo::inline LPO_ABI {

/// Defaults are those of the step-wise GRPO that arXiv 2502.01051 compares LPO with. An item is a group: the K
/// candidates of a prompt at a step, which share one forward and one backward pass.
struct GrpoTrainerOptions : RolloutTrainerOptions {
  GrpoOptions loss;
  GroupDeviation deviation = GroupDeviation::population;  ///< in the advantages
};

/// An objective of RolloutTrainer. T: latents.
template <class T, class Device>
class GrpoObjective {
 public:
  static constexpr bool keeps_pairs = false;
  using Store = CandidateStore<T, Device>;

  /// Room for the groups of `prompts` prompts of latents [h, w, c].
  GrpoObjective(const GrpoTrainerOptions& options, index_t prompts, const Extents<3>& latent)
      : loss_(options.loss), deviation_(options.deviation), steps_(static_cast<std::size_t>(options.sample_steps)),
        candidates_(options.rollout.candidates),
        groups_(options.sample_steps * prompts, options.rollout.candidates, latent),
        batch_(micro_batch_items(options), options.rollout.candidates, latent) {
    if (candidates_ < 2)
      throw ValueError(message("[GrpoTrainer] candidates is ", candidates_, "; a group has at least 2"));
    if (!(loss_.beta >= 0) || !(loss_.clip > 0))
      throw ValueError(message("[GrpoTrainer] beta ", loss_.beta, " and clip ", loss_.clip,
                               "; expected beta of at least 0 and clip above 0"));
  }

  /// Nothing is selected.
  std::vector<double> thresholds() const { return std::vector<double>(steps_, 0.0); }
  template <class Ranks, class Draw>
  void prepare(Ranks&, Rollout<T, Device>&, const Draw&) const {}

  template <class Json>
  void add_settings(Json& settings) const {
    settings["beta"] = loss_.beta;
    settings["clip"] = loss_.clip;
    settings["deviation"] = deviation_ == GroupDeviation::population ? "population" : "sample";
  }

  void begin_iteration() {
    metrics_ = {};
    groups_.clear();
  }

  /// Takes all candidates of a step.
  int keep(Context<Device>& context, const GaussianStep& step, const StepCandidates<T, Device>& drawn) {
    for (const float score : drawn.scores)
      if (!std::isfinite(score))
        throw NotANumberScore(message("[GrpoTrainer] a score at timestep ", step.timestep,
                                      " is not finite; check the reward model's precision and weights"));
    groups_.append(context, step.timestep, drawn, group_advantages(drawn.scores, candidates_, deviation_));
    return static_cast<int>(drawn.x_t.extent(0));
  }

  const Store& items(const Rollout<T, Device>&) const { return groups_; }
  void gather(Context<Device>& context, const Store& items, std::span<const int> numbers) {
    items.gather(context, numbers, batch_);
  }
  std::span<const PairRecord> records() const { return batch_.records(); }
  View<const T, 4, Device> x_t() const { return batch_.x_t(); }
  index_t rows_of_item() const { return 1; }

  template <int Channels>
  Var<T, 1, Device> loss(const Var<T, 4, Device, Channels>& prediction, View<const T, 4, Device> reference,
                         std::span<const GaussianStep> steps) {
    return grpo_loss(prediction, batch_.prediction(), reference, batch_.x_t(), batch_.batch_candidates(), steps,
                     batch_.batch_advantages(), loss_, &metrics_);
  }

  GrpoMetrics& metrics() { return metrics_; }
  index_t trained() const { return metrics_.groups; }
  MetricValues shown() const {
    return {{"loss", metrics_.loss}, {"kl", metrics_.divergence}, {"clipped", metrics_.clipped}};
  }
  MetricValues rollout_columns(const Rollout<T, Device>& rollout) const {
    return {{"kept", static_cast<double>(kept_in_all(rollout.statistics()))}};
  }
  MetricValues training_columns() const {
    return {{"train_loss", metrics_.loss},
            {"train_ratio", metrics_.ratio},
            {"ratio_clipped", metrics_.clipped},
            {"train_gain", metrics_.gain},
            {"kl", metrics_.divergence}};
  }

 private:
  GrpoOptions loss_;
  GroupDeviation deviation_;
  std::size_t steps_;
  int candidates_;
  Store groups_, batch_;
  GrpoMetrics metrics_;
};

/// RolloutTrainer of the paper's ablation (arXiv 2502.01051): LRM scores as step rewards, standardised over the K
/// candidates; the clipped policy-gradient loss with the divergence from the reference (grpo_loss). Ratios are taken to
/// the policy that drew the candidates, whose predictions are kept from the roll-out.
template <class UNet, class Lrm, class PolicyText, class RewardText,
          Communicator<typename UNet::device> Ranks = SoloCommunicator>
class GrpoTrainer
    : public RolloutTrainer<UNet, PolicyText, PromptedLatentScorer<Lrm, RewardText>,
                            GrpoObjective<compute_t<typename UNet::value_type>, typename UNet::device>, Ranks> {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Objective = GrpoObjective<compute_t<T>, Device>;
  using Scorer = PromptedLatentScorer<Lrm, RewardText>;

  /// `latent` is [h, w, c] of one latent.
  GrpoTrainer(Context<Device>& context, UNet& policy, ParameterStore<T, Device>& store, PolicyText& policy_text,
              Lrm& lrm, RewardText& reward_text, const NoiseSchedule& schedule, const Extents<3>& latent,
              const GrpoTrainerOptions& options, Ranks ranks = {})
      : RolloutTrainer<UNet, PolicyText, Scorer, Objective, Ranks>(
            {"grpo", "GrpoTrainer", "GRPO"}, context, policy, store, policy_text, schedule, latent, options,
            [&](Tape<Device>& tape) { return Scorer(tape, lrm, reward_text, options.max_rows, options.half_scores); },
            Objective(options, largest_share(options.sample_batch_size, ranks.size()), latent), ranks) {}
};

}  // namespace lpo::inline LPO_ABI
