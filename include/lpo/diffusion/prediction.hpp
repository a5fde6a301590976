// SPDX-License-Identifier: MIT
// Conversions between what networks predict: noise eps, velocity v, clean latent x_0. All are linear in (x_t, output).
#pragma once

#include <cmath>

#include <lpo/diffusion/scheduler_config.hpp>
#include <lpo/tensor/operators.hpp>

namespace lpo::inline LPO_ABI {

/// value = latent * x_t + output * (network output)
struct PredictionCoefficients {
  double latent;
  double output;

  /// The fused expression for operands of equal extents.
  template <Operand X, Operand Y>
  auto operator()(X&& latents, Y&& prediction) const {
    return latent * std::forward<X>(latents) + output * std::forward<Y>(prediction);
  }
};

/// x_0 estimate from x_t and the network's output at noise level abar.
/// x_t = sqrt(abar) x_0 + sqrt(1-abar) eps,  v = sqrt(abar) eps - sqrt(1-abar) x_0  (arXiv 2202.00512).
inline PredictionCoefficients clean_coefficients(PredictionType type, double alpha_bar) {
  const double signal = std::sqrt(alpha_bar), spread = std::sqrt(1 - alpha_bar);
  switch (type) {
    case PredictionType::epsilon:
      return {1 / signal, -spread / signal};
    case PredictionType::v_prediction:
      return {signal, -spread};
    default:
      return {0, 1};
  }
}

/// eps estimate from x_t and the network's output.
inline PredictionCoefficients epsilon_coefficients(PredictionType type, double alpha_bar) {
  const double signal = std::sqrt(alpha_bar), spread = std::sqrt(1 - alpha_bar);
  switch (type) {
    case PredictionType::epsilon:
      return {0, 1};
    case PredictionType::v_prediction:
      return {spread, signal};
    default:
      return {1 / spread, -signal / spread};
  }
}

/// v from x_t and the network's output.
inline PredictionCoefficients velocity_coefficients(PredictionType type, double alpha_bar) {
  const double signal = std::sqrt(alpha_bar), spread = std::sqrt(1 - alpha_bar);
  switch (type) {
    case PredictionType::epsilon:
      return {-spread / signal, 1 / signal};
    case PredictionType::v_prediction:
      return {0, 1};
    default:
      return {signal / spread, -1 / spread};
  }
}

}  // namespace lpo::inline LPO_ABI
