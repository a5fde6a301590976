// SPDX-License-Identifier: MIT
// SPO's preference model at the tiny world's size: what trains it and what aligns with it see the same.
#pragma once

#include <lpo/reward/step_aware_preference_model.hpp>

#include "../tiny_model.hpp"

namespace compare {

/// Drawn weights: there is no CLIP model of this world to begin with.
struct Preference {
  using Model = lpo::StepAwarePreferenceModel<tinyworld::vision_config, tinyworld::preference_text_config, float,
                                              tinyworld::Device>;

  Model model;
  tinyworld::Store store;

  explicit Preference(std::uint64_t seed) {
    store.add("", model);
    store.allocate_all_trainable();
    store.initialize(seed);
    model.vision.open_gates();
  }
};

}  // namespace compare
