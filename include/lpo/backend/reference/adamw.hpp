// SPDX-License-Identifier: MIT
// One AdamW step of the Reference device, in double between loads and stores.
#pragma once

#include <cmath>

#include <lpo/kernel/adamw.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct AdamW<Reference> {
  template <class T, class Gradient>
  static void step(Context<Reference>&, const AdamWParams& p, index_t count, T* parameter, const Gradient* gradient,
                   compute_t<T>* m, compute_t<T>* v) {
    const double beta1 = p.beta1, beta2 = p.beta2;
    for (index_t i = 0; i < count; ++i) {
      const double g = p.gradient_scale * detail::load_lanes<double>(gradient + i);
      const double first = beta1 * m[i] + (1.0 - beta1) * g;
      const double second = beta2 * v[i] + (1.0 - beta2) * g * g;
      const double value = detail::load_lanes<double>(parameter + i);
      const double direction = first / p.bias1 / (std::sqrt(second / p.bias2) + p.epsilon);
      m[i] = static_cast<compute_t<T>>(first);
      v[i] = static_cast<compute_t<T>>(second);
      detail::store_lanes(parameter + i, value - p.learning_rate * (direction + p.weight_decay * value));
    }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
