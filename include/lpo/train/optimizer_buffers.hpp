// SPDX-License-Identifier: MIT
// What trainers keep of AdamW in a checkpoint: the trained weights, its moments, the averages, and its settings.
#pragma once

#include <map>
#include <optional>
#include <string>

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

/// Adds what any run must have again when it is resumed: AdamW's options, and the program's `more` settings.
inline void add_shared_settings(TrainingState& state, const AdamWOptions& optimizer,
                                const std::map<std::string, std::string>& more) {
  auto& s = state.settings;
  s["adam_betas"] = {optimizer.beta1, optimizer.beta2};
  s["adam_epsilon"] = optimizer.epsilon;
  s["weight_decay"] = optimizer.weight_decay;
  for (const auto& [key, value] : more) s[key] = value;
}

}  // namespace lpo::inline LPO_ABI
