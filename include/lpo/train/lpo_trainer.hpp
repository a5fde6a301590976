// SPDX-License-Identifier: MIT
// LpoTrainer: latent preference optimization — roll out, score with the LRM, train the policy's LoRA on the kept pairs.
#pragma once

#include <utility>

#include <lpo/train/pair_objective.hpp>
#include <lpo/train/prompted_latent_scorer.hpp>
#include <lpo/train/rollout_trainer.hpp>

namespace lpo::inline LPO_ABI {

using LpoTrainerReport = RolloutTrainerReport;

/// RolloutTrainer of the paper (arXiv 2502.01051): an LRM scores the candidates, the loss is lpo_loss on clear pairs.
template <class UNet, class Lrm, class PolicyText, class RewardText,
          Communicator<typename UNet::device> Ranks = SoloCommunicator>
class LpoTrainer
    : public RolloutTrainer<UNet, PolicyText, PromptedLatentScorer<Lrm, RewardText>,
                            PairObjective<compute_t<typename UNet::value_type>, typename UNet::device>, Ranks> {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Objective = PairObjective<compute_t<T>, Device>;
  using Scorer = PromptedLatentScorer<Lrm, RewardText>;

  /// `latent` is [h, w, c] of one latent.
  LpoTrainer(Context<Device>& context, UNet& policy, ParameterStore<T, Device>& store, PolicyText& policy_text, Lrm& lrm,
             RewardText& reward_text, const NoiseSchedule& schedule, const Extents<3>& latent,
             const LpoTrainerOptions& options, Ranks ranks = {})
      : RolloutTrainer<UNet, PolicyText, Scorer, Objective, Ranks>(
            {"lpo", "LpoTrainer", "LPO"}, context, policy, store, policy_text, schedule, latent, options,
            [&](Tape<Device>& tape) { return Scorer(tape, lrm, reward_text, options.max_rows, options.half_scores); },
            Objective(options, schedule, micro_batch_items(options), latent), std::move(ranks)) {}
};

}  // namespace lpo::inline LPO_ABI
