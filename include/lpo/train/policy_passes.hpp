// SPDX-License-Identifier: MIT
// PolicyPasses: forward of reference and policy, loss and backward of an objective's mini-batches.
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include <lpo/nn/parameter_store.hpp>
#include <lpo/train/guided_denoiser.hpp>
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

  /// Forward and backward of the mini-batch that the objective has gathered from the chain `steps`, whose mean loss counts
  /// `share`. `first`: its gradients are stored, those of others add up. The loss waits for the device, so it lies between
  /// what is captured.
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
    using Buffers = detail::ConditionBuffers<UNet>;
    const auto halves = detail::unguided_and_guided(std::span<const index_t>(rows));
    bool known = pass.condition.set_texts(trainer_, context, prompts, std::span<const index_t>(halves));
    known = pass.condition.set_timesteps(context, timesteps) && known;
    known = Buffers::fit(pass.latents, detail::with_rows(objective_.x_t().extents, rows.size())) && known;
    if (!known) pass.work.reset();
    for (index_t begin = 0; begin < copies * n; begin += n)
      evaluate(&context, pass.latents.view().slice(0, begin, begin + n), objective_.x_t());

    pass.work.begin(context);
    begin_stage(options_, LpoStage::reference);
    pass.work.run(context, [&] {
      const auto guard = tape_.inference();
      const auto plain = tape_.without_adapters();
      pass.reference = reference_prediction(reference_ != nullptr ? *reference_ : policy_, pass);
    });
    begin_stage(options_, LpoStage::policy);
    pass.work.run(context, [&] { pass.prediction = prediction(policy_, pass); });
    set_cotangent(pass, std::span<const GaussianStep>(transitions), share);
    pass.work.run(context, [&] { backward(pass.prediction, View<const Latent, 4, Device>(pass.cotangent.view())); });
    if (pass.work.replays()) {
      for (Slot* slot : pass.reached) slot->written = true;
    } else {
      pass.reached.clear();
      for (const auto& entry : store_.entries())
        if (entry.parameter->slot.written) pass.reached.push_back(&entry.parameter->slot);
    }
    tape_.clear();
  }

 private:
  /// What forward and backward of mini-batches of one size read, and what is captured of them.
  struct Pass {
    detail::ConditionBuffers<UNet> condition;  ///< rows [u ; c]
    Tensor<T, 4, Device> latents;
    Tensor<Latent, 4, Device> cotangent;  ///< of the guided prediction
    RepeatedWork<Device> work{3};         ///< the reference's pass, the policy's, backward
    Var<Latent, 4, Device> reference, prediction;
    std::vector<Slot*> reached;  ///< weights whose gradients backward writes
  };

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

  /// d loss / d prediction of a pass, times `share` and the loss scale.
  void set_cotangent(Pass& pass, std::span<const GaussianStep> steps, double share) {
    auto& context = tape_.context();
    const auto& extents = pass.prediction.extents();
    if (pass.cotangent.data() == nullptr) pass.cotangent = Tensor<Latent, 4, Device>(extents);
    const auto start = context.activations().mark();
    auto* const position = tape_.position();
    Slot* const slot = tape_.make_external_slot(pass.prediction.data(), static_cast<std::size_t>(extents.size()) * sizeof(Latent), true);
    slot->gradient = reinterpret_cast<std::byte*>(pass.cotangent.data());
    slot->persistent = true;  // the gradient is not the tape's
    const Var<Latent, 4, Device> prediction(&tape_, slot, View<Latent, 4, Device>(pass.prediction.data(), extents));
    const auto loss = objective_.loss(prediction, pass.reference.view(), steps);
    const auto weight = static_cast<Latent>(share * options_.loss_scale);
    const View<Latent, 1, Device> one(tape_.template allocate<Latent>(1), Extents<1>{1});
    context.copy_from_host(one.data, &weight, sizeof(weight));
    detail::add_gradient(loss, View<const Latent, 1, Device>(one));
    tape_.run_back_to(position);
    if (!slot->written) context.fill_zero(slot->gradient, slot->bytes);
    context.activations().rewind(start);
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
