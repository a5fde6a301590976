// SPDX-License-Identifier: MIT
// Gradient clipping by the global norm: the norm, and the factor for the optimiser's gradient_scale.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <lpo/kernel/reduce.hpp>
#include <lpo/optim/adamw.hpp>

namespace lpo::inline LPO_ABI {

/// Euclidean norm over the gradients of all spans, in double.
template <class T, class Device>
double global_gradient_norm(Context<Device>& context, const std::vector<ParameterSpan<T>>& spans) {
  double sum = 0;
  for (const auto& span : spans) sum += kernel::Reduce<Device>::sum_of_squares(context, span.count, span.gradient);
  return std::sqrt(sum);
}

/// min(1, maximum / (norm + 1e-6)), torch's clip_grad_norm_; 1 when `maximum` is 0 (clipping off). A norm that is not
/// finite gives a factor that is not a useful number: check the norm and skip the step.
inline double clip_scale(double norm, double maximum) {
  if (maximum <= 0) return 1;
  if (std::isnan(norm)) return norm;
  return std::min(1.0, maximum / (norm + 1e-6));
}

}  // namespace lpo::inline LPO_ABI
