// SPDX-License-Identifier: MIT
// Contract of one AdamW step over a flat buffer.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr * (m / bias1 / (sqrt(v / bias2) + epsilon) + weight_decay
/// * p), with g = gradient_scale * gradient, bias1 = 1 - b1^t, bias2 = 1 - b2^t (decoupled decay, arXiv 1711.05101).
/// Gradients may be stored in fewer bits than the parameters that they update.
struct AdamWParams {
  float learning_rate = 0, beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, weight_decay = 0;
  float bias1 = 1, bias2 = 1;
  float gradient_scale = 1;
};

template <class Device>
struct AdamW {
  LPO_MISSING_KERNEL(Device, "adamw");

  template <class T, class Gradient>
  static void step(Context<Device>&, const AdamWParams&, index_t count, T* parameter, const Gradient* gradient,
                   compute_t<T>* m, compute_t<T>* v);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
