// SPDX-License-Identifier: MIT
// SpoTrainer: step-by-step preference optimization — LPO's loop with a scorer that looks at predicted pictures.
#pragma once

#include <utility>

#include <lpo/train/pair_objective.hpp>
#include <lpo/train/predicted_image_scorer.hpp>
#include <lpo/train/rollout_trainer.hpp>

namespace lpo::inline LPO_ABI {

/// LPO's options with the values of SPO on SD1.5 (arXiv 2406.04314). `rollout.lrm_timestep` has no
/// effect: the preference model is told the arrival.
struct SpoTrainerOptions : LpoTrainerOptions {
  SpoTrainerOptions() {
    loss.beta = 10;
    threshold.mode = ThresholdMode::constant;
    threshold.constant = 0.3;
    sample_batch_size = 10;
    train_batch_size = 10;
    rollout.divert_start_step = 4;
  }
};

/// RolloutTrainer of SPO. PromptTokens::reward_ids are for the preference model's text tower.
template <class UNet, class Vae, class Preference, class PolicyText,
          Communicator<typename UNet::device> Ranks = SoloCommunicator>
class SpoTrainer
    : public RolloutTrainer<UNet, PolicyText, PredictedImageScorer<UNet, Vae, Preference>,
                            PairObjective<compute_t<typename UNet::value_type>, typename UNet::device>, Ranks> {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Objective = PairObjective<compute_t<T>, Device>;
  using Scorer = PredictedImageScorer<UNet, Vae, Preference>;

  /// `latent` is [h, w, c] of one latent; `vae` and `preference` are frozen.
  SpoTrainer(Context<Device>& context, UNet& policy, ParameterStore<T, Device>& store, PolicyText& policy_text,
             Vae& vae, Preference& preference, const NoiseSchedule& schedule, const Extents<3>& latent,
             const SpoTrainerOptions& options, Ranks ranks = {})
      : RolloutTrainer<UNet, PolicyText, Scorer, Objective, Ranks>(
            {"spo", "SpoTrainer", "SPO"}, context, policy, store, policy_text, schedule, latent, options,
            [&](Tape<Device>& tape) {
              return Scorer(tape, policy, vae, preference, schedule, options.guidance_scale, options.max_rows);
            },
            Objective(options, schedule, micro_batch_items(options), latent), std::move(ranks)) {}
};

}  // namespace lpo::inline LPO_ABI
