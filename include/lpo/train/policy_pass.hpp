// SPDX-License-Identifier: MIT
// PolicyPass: forward of a reference and of a policy, a loss that compares them, and backward through the policy.
#pragma once

#include <lpo/train/captured_backward.hpp>
#include <lpo/train/guided_denoiser.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Mini-batches of one size, one after the other. What the networks read is copied to `condition` and `latents`. On
/// devices that can, the reference's pass, the policy's and backward are captured once and replayed; the loss lies
/// between them, because the host reads its numbers.
template <class UNet>
class PolicyPass {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Latent = compute_t<T>;
  using Prediction = Var<Latent, 4, Device>;

  ConditionBuffers<UNet> condition;
  Tensor<T, 4, Device> latents;

  /// Before the three parts. `known`: what is read lies where it lay before.
  void begin(Context<Device>& context, bool known) {
    if (!known) work_.reset();
    work_.begin(context);
  }
  /// `predict()` runs without gradients and adapters.
  template <class Predict>
  void run_reference(Tape<Device>& tape, const Predict& predict) {
    work_.run(tape.context(), [&] {
      const auto guard = tape.inference();
      const auto plain = tape.without_adapters();
      reference_ = predict();
    });
  }
  template <class Predict>
  void run_policy(Tape<Device>& tape, const Predict& predict) {
    work_.run(tape.context(), [&] { prediction_ = predict(); });
  }
  /// Backward through the policy from `weight` times `loss(prediction, reference)` [1]; then the tape is clear.
  template <class Loss>
  void run_backward(Tape<Device>& tape, const ParameterStore<T, Device>& store, double weight, const Loss& loss) {
    differentiate(tape, weight, [&] {
      return loss(cut_.input(tape, prediction_.view()), View<const Latent, 4, Device>(reference_.view()));
    });
    cut_.finish(tape.context());
    work_.run(tape.context(), [&] { backward(prediction_, cut_.gradient()); });
    written_.after_backward(store, work_.replays());
    tape.clear();
  }

 private:
  RepeatedWork<Device> work_{3};
  Prediction reference_, prediction_;  ///< their views outlive the tape: replays write there
  GradientCut<Latent, 4, Device> cut_;
  WrittenWeights written_;
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
