// SPDX-License-Identifier: MIT
// What a training step needs that is captured in pieces (RepeatedWork), with a loss between them that the host reads.
#pragma once

#include <cstddef>
#include <vector>

#include <lpo/nn/parameter_store.hpp>
#include <lpo/train/guided_denoiser.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Where a backward pass is cut in two: the later part leaves the gradient of a value in memory that stays, and the
/// earlier part starts from it.
template <class T, int Rank, class Device>
class GradientCut {
 public:
  /// A dense `value` as an input of what follows it on the tape.
  Var<T, Rank, Device> input(Tape<Device>& tape, const View<const T, Rank, Device>& value) {
    fit(gradient_, value.extents);
    slot_ = tape.make_external_slot(value.data, static_cast<std::size_t>(value.size()) * sizeof(T), true);
    slot_->gradient = reinterpret_cast<std::byte*>(gradient_.data());
    slot_->persistent = true;  // the gradient is not the tape's
    return {&tape, slot_, View<T, Rank, Device>(reinterpret_cast<T*>(slot_->data), value.extents)};
  }
  /// After backward through what follows: zeros where that did not come here.
  void finish(Context<Device>& context) const {
    if (!slot_->written) context.fill_zero(slot_->gradient, slot_->bytes);
  }
  View<const T, Rank, Device> gradient() const { return gradient_; }

 private:
  Tensor<T, Rank, Device> gradient_;
  Slot* slot_ = nullptr;
};

/// `loss()`, which gives a Var [1], and backward through it from `weight`, as far as values that were on the tape
/// before. What it took of the arena is given back.
template <class Device, class Loss>
void differentiate(Tape<Device>& tape, double weight, const Loss& loss) {
  auto& context = tape.context();
  const auto start = context.activations().mark();
  auto* const position = tape.position();
  const auto value = loss();
  using T = typename decltype(value)::value_type;
  if (!value.requires_gradient())
    throw ValueError(
        "[backward] the loss depends on no value that requires a gradient; check the trainable parameters");
  const T number = static_cast<T>(static_cast<compute_t<T>>(weight));
  const View<T, 1, Device> one(tape.template allocate<T>(1), Extents<1>{1});
  context.copy_from_host(one.data, &number, sizeof(number));
  add_gradient(value, View<const T, 1, Device>(one));
  tape.run_back_to(position);
  context.activations().rewind(start);
}

/// Whose gradients a backward pass writes. A replay does not tell their slots; this does.
class WrittenWeights {
 public:
  /// After each pass.
  template <class T, class Device>
  void after_backward(const ParameterStore<T, Device>& store, bool replayed) {
    if (replayed) {
      for (Slot* slot : slots_) slot->written = true;
      return;
    }
    slots_.clear();
    for (const auto& entry : store.entries())
      if (entry.parameter->slot.written) slots_.push_back(&entry.parameter->slot);
  }

 private:
  std::vector<Slot*> slots_;
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
