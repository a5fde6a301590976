// SPDX-License-Identifier: MIT
// PolicyPasses: forward of reference and policy, loss and backward of an objective's mini-batches.
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include <lpo/nn/parameter_store.hpp>
#include <lpo/train/policy_pass.hpp>
#include <lpo/train/rollout_trainer_options.hpp>

namespace lpo::inline LPO_ABI {

/// Adds up the gradients of a policy. With LoRA the reference is the same UNet with adapters off; without, it is what
/// `set_reference` names. Keeps references to what it is given.
template <class UNet, class Objective>
class PolicyPasses {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Latent = compute_t<T>;

  /// `trainer` is named in messages.
  PolicyPasses(const char* trainer, Tape<Device>& tape, UNet& policy, ParameterStore<T, Device>& store,
               Objective& objective, const RolloutTrainerOptions& options)
      : trainer_(trainer), tape_(tape), policy_(policy), store_(store), objective_(objective), options_(options) {}

  void set_reference(UNet& reference) {
    reference_ = &reference;
    passes_.clear();  // what is captured reads the one before
  }

  /// Whether the reference is a network of its own: the policy trains whole.
  bool has_reference() const { return reference_ != nullptr; }

  /// Forward and backward of the mini-batch that the objective has gathered from the chain `steps`, whose mean loss counts
  /// `share`. `first`: its gradients are stored, those of others add up.
  void add_gradients(const PromptBatch<T, Device>& prompts, std::span<const GaussianStep> steps, double share, bool first) {
    auto& context = tape_.context();
    const auto records = objective_.records();
    const index_t n = std::ssize(records), copies = objective_.rows_of_item();
    std::vector<index_t> rows;
    std::vector<float> timesteps;
    std::vector<GaussianStep> transitions;
    for (index_t i = 0; i < copies * n; ++i) {
      const PairRecord& record = records[static_cast<std::size_t>(i % n)];
      rows.push_back(record.prompt);
      timesteps.push_back(static_cast<float>(record.timestep));
      if (i < n) transitions.push_back(steps[static_cast<std::size_t>(record.step)]);
    }
    Pass& pass = passes_[{n, first}];
    const auto halves = detail::unguided_and_guided(std::span<const index_t>(rows));
    bool known = pass.condition.set_texts(trainer_, context, prompts, std::span<const index_t>(halves));
    known = pass.condition.set_timesteps(context, timesteps) && known;
    known = detail::fit(pass.latents, detail::with_rows(objective_.x_t().extents, rows.size())) && known;
    for (index_t begin = 0; begin < copies * n; begin += n)
      evaluate(&context, pass.latents.view().slice(0, begin, begin + n), objective_.x_t());

    pass.begin(context, known);
    begin_stage(options_, LpoStage::reference);
    pass.run_reference(tape_, [&] {
      return reference_prediction(reference_ != nullptr ? *reference_ : policy_, pass);
    });
    begin_stage(options_, LpoStage::policy);
    pass.run_policy(tape_, [&] { return prediction(policy_, pass); });
    pass.run_backward(tape_, store_, share * options_.loss_scale, [&](const auto& predicted, const auto& reference) {
      return objective_.loss(predicted, reference, std::span<const GaussianStep>(transitions));
    });
  }

 private:
  using Pass = detail::PolicyPass<UNet>;

  Var<Latent, 4, Device> prediction(UNet& unet, const Pass& pass) {
    return guided_prediction(unet, pass.condition.on(tape_), constant(tape_, pass.latents), options_.guidance_scale);
  }

  Var<Latent, 4, Device> reference_prediction(UNet& unet, const Pass& pass) {
    if (!options_.half_reference) return prediction(unet, pass);
    return scoped(tape_, [&] {
      const Var<T, 4, Device> both = unet(constant(tape_, pass.latents), pass.condition.on(tape_));
      const auto guided = make_output<Latent>(tape_, pass.latents.extents(), false);
      guide_in_half<Latent, Device, T>(tape_.context(), both.view(), options_.guidance_scale, guided.view());
      return guided;
    });
  }

  const char* trainer_;
  Tape<Device>& tape_;
  UNet& policy_;
  UNet* reference_ = nullptr;
  ParameterStore<T, Device>& store_;
  Objective& objective_;
  const RolloutTrainerOptions& options_;
  std::map<std::pair<index_t, bool>, Pass> passes_;  ///< by items, and whether gradients are stored
};

}  // namespace lpo::inline LPO_ABI
