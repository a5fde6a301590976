// SPDX-License-Identifier: MIT
// KeepPacked: a store's frozen weights stay packed for products, for speed that costs memory.
#pragma once

#include <lpo/nn/parameter_store.hpp>

namespace lpo::inline LPO_ABI {

/// While it lives, frozen weights must not change, and products of `context` pack each of them once instead of in every
/// call. Results keep their bits. Make it when the weights are loaded and merged:
///
///   store.allocate(is_lora_name);
///   load_unet(folder + "/unet", unet, store, "unet");
///   KeepPacked packed(context, store);
///
/// It takes up to as much memory again as the frozen weights in a forward, and twice that with gradients; 16-bit weights
/// are kept as float where products multiply floats (`context.packed_weights().reserved_bytes()` says how much). Neither
/// the context, nor the store, nor its memory (allocate()) may go or move before it. 3 x 3 filters that are transformed for
/// their products (backend/cpu/winograd.hpp) are not kept. Only the CPU's products pack; with other devices this does nothing.
template <class T, class Device>
class KeepPacked {
 public:
  KeepPacked(Context<Device>& context, ParameterStore<T, Device>& store)
      : context_(context), frozen_(store.frozen_values()) {
    if constexpr (packs) context.packed_weights().promise(frozen_, static_cast<std::size_t>(store.frozen_size()) * sizeof(T));
  }
  KeepPacked(const KeepPacked&) = delete;
  KeepPacked& operator=(const KeepPacked&) = delete;
  ~KeepPacked() {
    if constexpr (packs) context_.packed_weights().forget(frozen_);
  }

  /// Call this after weights were loaded or merged all the same: what was packed is made again.
  void weights_changed() {
    if constexpr (packs) context_.packed_weights().drop();
  }

 private:
  static constexpr bool packs = requires(Context<Device>& c) { c.packed_weights(); };

  Context<Device>& context_;
  const T* frozen_;
};

}  // namespace lpo::inline LPO_ABI
