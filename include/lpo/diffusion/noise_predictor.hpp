// SPDX-License-Identifier: MIT
// NoisePredictor: the concept through which samplers see a network.
#pragma once

#include <lpo/tensor/view.hpp>

namespace lpo::inline LPO_ABI {

/// `p.predict(x_t, timestep, prediction)`: writes the guided network output for the current prompt batch, row b of all
/// views [b, h, w, c] belonging to prompt b. "Prediction" is what the schedule's prediction_type says, usually epsilon.
/// `timestep` is a double: Euler visits fractions of timesteps, and the braces keep out a parameter that cuts them off.
template <class Predictor, class T, class Device>
concept NoisePredictor = requires(Predictor& predictor, View<const T, 4, Device> latents, double timestep,
                                  View<T, 4, Device> prediction) {
  predictor.predict(latents, {timestep}, prediction);
};

}  // namespace lpo::inline LPO_ABI
