// SPDX-License-Identifier: MIT
// DpoPasses: forward of reference and policy, the Diffusion-DPO loss and backward, of the mini-batches of a step.
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include <lpo/preference/diffusion_dpo_loss.hpp>
#include <lpo/train/dpo_batch.hpp>
#include <lpo/train/dpo_trainer_options.hpp>
#include <lpo/train/policy_pass.hpp>

namespace lpo::inline LPO_ABI {

/// Adds up the gradients of a policy. With LoRA the reference is the same UNet with adapters off; without, it is what
/// `set_reference` names. Keeps references to what it is given.
template <class UNet>
class DpoPasses {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Latent = compute_t<T>;

  DpoPasses(Tape<Device>& tape, UNet& policy, ParameterStore<T, Device>& store, const DpoTrainerOptions& options)
      : tape_(tape), policy_(policy), store_(store), options_(options) {}

  void set_reference(UNet& reference) {
    reference_ = &reference;
    passes_.clear();  // what is captured reads the one before
  }

  /// Forward and backward of a batch of latents [h, w, c] under `prompts`, whose mean loss counts `share`. `first`: its
  /// gradients are stored, those of others add up.
  void add_gradients(const PromptBatch<T, Device>& prompts, const DpoBatch& batch, const Extents<3>& latent,
                     double share, bool first, DiffusionDpoMetrics& metrics) {
    auto& context = tape_.context();
    const Extents<4> extents{2 * batch.pairs(), latent[0], latent[1], latent[2]};
    Pass& pass = passes_[{batch.pairs(), first}];
    bool known = pass.condition.set_texts("DpoTrainer", context, prompts, std::span<const index_t>(batch.prompts));
    known = pass.condition.set_timesteps(context, batch.timesteps) && known;
    known = detail::fit(pass.latents, extents) && known;
    detail::fit(target_, extents);
    upload(target_, batch.target);
    if constexpr (std::is_same_v<T, Latent>) {
      upload(pass.latents, batch.noisy);
    } else {
      detail::fit(noisy_, extents);
      upload(noisy_, batch.noisy);
      evaluate(&context, pass.latents.view(), noisy_.view());
    }

    pass.begin(context, known);
    pass.run_reference(tape_, [&] { return predict(reference_ != nullptr ? *reference_ : policy_, pass); });
    pass.run_policy(tape_, [&] { return predict(policy_, pass); });
    pass.run_backward(tape_, store_, share * options_.loss_scale, [&](const auto& predicted, const auto& reference) {
      return diffusion_dpo_loss(predicted, reference, target_.view(), options_.beta_dpo, &metrics);
    });
  }

 private:
  using Pass = detail::PolicyPass<UNet>;

  void upload(Tensor<Latent, 4, Device>& tensor, const std::vector<Latent>& values) {
    tape_.context().copy_from_host(tensor.data(), values.data(), values.size() * sizeof(Latent));
  }

  Var<Latent, 4, Device> predict(UNet& unet, const Pass& pass) {
    const Var<T, 4, Device> prediction = unet(constant(tape_, pass.latents), pass.condition.on(tape_));
    if constexpr (std::is_same_v<T, Latent>)
      return prediction;
    else
      return Var<Latent, 4, Device>(1.0 * prediction);
  }

  Tape<Device>& tape_;
  UNet& policy_;
  UNet* reference_ = nullptr;
  ParameterStore<T, Device>& store_;
  const DpoTrainerOptions& options_;
  Tensor<Latent, 4, Device> noisy_, target_;           ///< of the batch; outside of what is captured
  std::map<std::pair<index_t, bool>, Pass> passes_;  ///< by pairs, and whether gradients are stored
};

}  // namespace lpo::inline LPO_ABI
