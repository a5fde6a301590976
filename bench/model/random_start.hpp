// SPDX-License-Identifier: MIT
// Starting values of a model for measurements: uniform numbers, because a store's own start takes longer than what is
// timed.
#pragma once

#include <algorithm>
#include <cstdint>

#include <lpo/nn/parameter_store.hpp>

namespace bench {

class RandomStart {
 public:
  /// Uniform numbers in +-scale.
  template <class T>
  void draw(T* to, lpo::index_t count, float scale) {
    for (lpo::index_t i = 0; i < count; ++i) {
      seed_ = seed_ * 1664525u + 1013904223u;
      to[i] = static_cast<T>(static_cast<float>(static_cast<std::int32_t>(seed_)) * (scale / 2147483648.0f));
    }
  }

  /// All parameters of a store, by the scale of their initialization.
  template <class T>
  void draw(lpo::ParameterStore<T, lpo::Cpu>& store) {
    using Kind = lpo::Initialization::Kind;
    for (const auto& entry : store.entries()) {
      auto& p = *entry.parameter;
      const auto [kind, scale] = p.initialization;
      const bool drawn = kind == Kind::uniform || kind == Kind::normal || p.trainable();
      const float constant = kind == Kind::ones ? 1.0f : kind == Kind::constant ? scale : 0.0f;
      if (drawn)
        draw(p.data(), p.size(), scale == 0.0f ? 0.01f : scale);
      else
        std::fill_n(p.data(), p.size(), static_cast<T>(constant));
    }
  }

 private:
  std::uint32_t seed_ = 7;
};

}  // namespace bench
