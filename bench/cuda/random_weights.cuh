// SPDX-License-Identifier: MIT
// Starting values of a model drawn on the device: a store's own start runs on the host and takes minutes at full size.
#pragma once

#include <cmath>

#include <lpo/nn/parameter_store.hpp>

#include <cuda/device_time.cuh>

namespace bench {

/// Every weight of `store` with the mean and the deviation of its initialization; uniform ones become normal.
template <class T>
void initialize_on_device(lpo::Context<Cuda>& context, lpo::ParameterStore<T, Cuda>& store, std::uint64_t seed) {
  using Kind = lpo::Initialization::Kind;
  std::uint32_t operation = 0;
  for (const auto& entry : store.entries()) {
    auto& p = *entry.parameter;
    const auto [kind, scale] = p.initialization;
    const float mean = kind == Kind::ones ? 1.0f : kind == Kind::constant ? scale : 0.0f;
    const float deviation = kind == Kind::normal ? scale : kind == Kind::uniform ? scale / std::sqrt(3.0f) : 0.0f;
    lpo::kernel::RandomNormal<Cuda>::fill(context, p.size(), p.data(), mean, deviation, seed, operation++, 0, 0);
  }
}

}  // namespace bench
