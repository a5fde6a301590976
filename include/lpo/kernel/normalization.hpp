// SPDX-License-Identifier: MIT
// Contracts of group norm (optionally fused with SiLU), layer norm and row softmax, with their gradients.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// Statistics are float (double for T = double) and kept for backward.
struct GroupNormShape {
  index_t n = 0;        ///< images
  index_t spatial = 0;  ///< h * w
  index_t c = 0;        ///< channels, a multiple of groups
  index_t groups = 1;
  float epsilon = 1e-5f;
  bool silu = false;  ///< y = silu(norm(x)) instead of norm(x)
};

/// x, y: [n, spatial, c] dense; weight, bias: [c]; mean, inverse_deviation: [n, groups] of compute_t<T>.
/// norm(x) = (x - mean) / sqrt(var + epsilon) * weight + bias with the biased variance over (spatial, c / groups).
template <class Device>
struct GroupNorm {
  LPO_MISSING_KERNEL(Device, "group_norm");

  template <class T>
  static void forward(Context<Device>&, const GroupNormShape&, const T* x, const T* weight, const T* bias, T* y,
                      compute_t<T>* mean, compute_t<T>* inverse_deviation);
  /// Any of dx, dweight, dbias may be null; each accumulate flag says add instead of overwrite.
  template <class T>
  static void backward(Context<Device>&, const GroupNormShape&, const T* x, const T* weight, const T* bias,
                       const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx,
                       bool accumulate_x, T* dweight, bool accumulate_weight, T* dbias, bool accumulate_bias);
};

/// x, y: [rows, c] dense; mean, inverse_deviation: [rows]. Biased variance over c.
template <class Device>
struct LayerNorm {
  LPO_MISSING_KERNEL(Device, "layer_norm");

  template <class T>
  static void forward(Context<Device>&, index_t rows, index_t c, float epsilon, const T* x, const T* weight, const T* bias,
                      T* y, compute_t<T>* mean, compute_t<T>* inverse_deviation);
  template <class T>
  static void backward(Context<Device>&, index_t rows, index_t c, const T* x, const T* weight, const compute_t<T>* mean,
                       const compute_t<T>* inverse_deviation, const T* dy, T* dx, bool accumulate_x, T* dweight,
                       bool accumulate_weight, T* dbias, bool accumulate_bias);
};

/// Softmax over the last axis of [rows, c].
template <class Device>
struct Softmax {
  LPO_MISSING_KERNEL(Device, "softmax");

  template <class T>
  static void forward(Context<Device>&, index_t rows, index_t c, const T* x, T* y);
  /// dx (+)= y * (dy - sum(y * dy)).
  template <class T>
  static void backward(Context<Device>&, index_t rows, index_t c, const T* y, const T* dy, T* dx, bool accumulate);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
