// SPDX-License-Identifier: MIT
// What an optimizer has changed, as buffers of a checkpoint: the trained weights, AdamW's moments and the averages.
#pragma once

#include <optional>

#include <lpo/nn/parameter_store.hpp>
#include <lpo/optim/adamw.hpp>
#include <lpo/optim/ema.hpp>
#include <lpo/train/training_checkpoint.hpp>

namespace lpo::inline LPO_ABI {

/// Adds "weights" (of 16-bit networks their float masters), "first_moment", "second_moment" and, if there are averages,
/// "ema" to `state`. They point into the memory of their owners.
template <class T, class Device>
void add_optimizer_buffers(TrainingState& state, ParameterStore<T, Device>& store, AdamW<T, Device>& optimizer,
                           std::optional<Ema<T, Device>>& ema) {
  const auto add = [&, count = static_cast<std::size_t>(store.trainable_size())](const char* name, float* values) {
    state.buffers.push_back(device_buffer<Device>(name, values, count));
  };
  if constexpr (AdamW<T, Device>::has_masters)
    add("weights", optimizer.masters().data);
  else
    add("weights", store.trainable_values());
  add("first_moment", optimizer.first_moment().data);
  add("second_moment", optimizer.second_moment().data);
  if (ema) add("ema", ema->average().data);
}

}  // namespace lpo::inline LPO_ABI
