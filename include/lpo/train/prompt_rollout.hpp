// SPDX-License-Identifier: MIT
// PromptRollout: rolls out a batch of prompts with a policy and lets a scorer rate the candidates of every step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <lpo/distributed/collectives.hpp>
#include <lpo/train/guided_denoiser.hpp>
#include <lpo/train/latent_scorer.hpp>
#include <lpo/train/rollout_trainer_options.hpp>

namespace lpo::inline LPO_ABI {

/// A Rollout with its denoiser, scorer and texts, of which each rank does a share. Keeps references to what it is given.
template <class UNet, class PolicyText, class Scorer, Communicator<typename UNet::device> Ranks>
class PromptRollout {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Latent = compute_t<T>;

  /// `steps` and `thresholds` as Rollout takes them; `latent` is [h, w, c] of one; `make_scorer(tape)` gives the scorer.
  template <class MakeScorer>
  PromptRollout(Ranks& ranks, Tape<Device>& tape, UNet& policy, PolicyText& text, const RolloutTrainerOptions& options,
                std::vector<GaussianStep> steps, std::vector<double> thresholds, bool keep_pairs,
                const Extents<3>& latent, const MakeScorer& make_scorer)
      : ranks_(ranks), tape_(tape), text_(text), options_(options), denoiser_(tape, policy, options.guidance_scale),
        scorer_(make_scorer(tape)),
        rollout_(tape.context(), std::move(steps), std::move(thresholds),
                 Extents<4>{largest_share(options.sample_batch_size, ranks.size()), latent[0], latent[1], latent[2]},
                 rollout_options(options, keep_pairs)) {}

  /// The policy's states of the prompts number `rows`.
  PromptBatch<T, Device> encode(const PromptTokens& prompts, const std::vector<index_t>& rows) {
    const auto picked = picked_ids(prompts.ids, prompts.tokens, rows);
    return encode_prompts<T>(tape_, text_, std::span<const std::int32_t>(picked), static_cast<index_t>(rows.size()));
  }

  /// Rolls out this rank's share of the prompts number `rows`, whose states `all` are. An objective that does not train on
  /// clear pairs takes from every step what it wants. Statistics are of all ranks.
  template <class Objective>
  void run(const PromptTokens& prompts, const std::vector<index_t>& rows, const PromptBatch<T, Device>& all,
           std::uint32_t iteration, Objective& objective, const StepCallback& go_on) {
    const Share share = own_share(ranks_, std::ssize(rows));
    const std::vector<index_t> own(rows.begin() + share.begin, rows.begin() + share.end);
    PromptBatch<T, Device> part;
    if (share.size() < std::ssize(rows)) part = encode(prompts, own);
    const PromptBatch<T, Device>& policy_prompts = share.size() < std::ssize(rows) ? part : all;
    denoiser_.set_prompts(policy_prompts);
    const auto picked = picked_ids(prompts.reward_ids, prompts.reward_tokens, own);
    scorer_.set_prompts(policy_prompts, std::span<const std::int32_t>(picked), share.size());
    rollout_.set_part(share.begin, std::ssize(rows));

    Stages stages{*this};
    objective.begin_iteration();
    if constexpr (Objective::keeps_pairs)
      rollout_.run(stages, stages, iteration, share.size(), go_on);
    else
      rollout_.run(stages, stages, iteration, share.size(), go_on, [&](const StepCandidates<Latent, Device>& drawn) {
        return objective.keep(tape_.context(), steps()[static_cast<std::size_t>(drawn.step)], drawn);
      });
    rollout_.set_statistics(of_all_ranks(rollout_.statistics()));
  }

  Rollout<Latent, Device>& rollout() { return rollout_; }
  const Rollout<Latent, Device>& rollout() const { return rollout_; }
  std::span<const GaussianStep> steps() const { return rollout_.steps(); }

 private:
  /// The denoiser and the scorer as the roll-out sees them: each tells when it begins.
  struct Stages {
    PromptRollout& parts;

    void predict(View<const Latent, 4, Device> latents, double timestep, View<Latent, 4, Device> prediction) {
      begin_stage(parts.options_, LpoStage::denoising);
      if constexpr (requires { parts.scorer_.known_prediction(timestep, prediction); })
        if (parts.scorer_.known_prediction(timestep, prediction)) return;
      parts.denoiser_.predict(latents, timestep, prediction);
    }
    void score(View<const Latent, 4, Device> latents, int timestep, std::span<float> scores)
      requires(StepScorer<Scorer, Latent, Device>)
    {
      begin_stage(parts.options_, LpoStage::scoring);
      parts.scorer_.score(latents, timestep, scores);
    }
    void score(View<const Latent, 4, Device> latents, const GaussianStep& step, std::span<float> scores)
      requires(TransitionScorer<Scorer, Latent, Device>)
    {
      begin_stage(parts.options_, LpoStage::scoring);
      parts.scorer_.score(latents, step, scores);
    }
    void continue_with(std::span<const int> chosen) {
      if constexpr (requires { parts.scorer_.continue_with(chosen); }) parts.scorer_.continue_with(chosen);
    }
  };

  static RolloutOptions rollout_options(const RolloutTrainerOptions& options, bool keep_pairs) {
    RolloutOptions rollout = options.rollout;
    rollout.seed = options.seed;
    rollout.keep_pairs = keep_pairs;
    return rollout;
  }

  static std::vector<std::int32_t> picked_ids(const std::vector<std::int32_t>& ids, index_t tokens,
                                              const std::vector<index_t>& rows) {
    std::vector<std::int32_t> picked;
    for (const index_t row : rows) picked.insert(picked.end(), ids.begin() + row * tokens, ids.begin() + (row + 1) * tokens);
    return picked;
  }

  std::vector<StepStatistics> of_all_ranks(std::span<const StepStatistics> own) {
    const auto all = gather_values(ranks_, std::vector<StepStatistics>(own.begin(), own.end()));
    std::vector<StepStatistics> merged(all.begin(), all.begin() + std::ssize(own));
    for (std::size_t i = own.size(); i < all.size(); ++i) merged[i % own.size()].merge(all[i]);
    return merged;
  }

  Ranks& ranks_;
  Tape<Device>& tape_;
  PolicyText& text_;
  const RolloutTrainerOptions& options_;
  GuidedDenoiser<UNet> denoiser_;
  Scorer scorer_;
  Rollout<Latent, Device> rollout_;
};

}  // namespace lpo::inline LPO_ABI
