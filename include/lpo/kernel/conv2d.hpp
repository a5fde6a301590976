// SPDX-License-Identifier: MIT
// Contract of the 2-D convolution and its two gradients, channels last.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// x is [n, h, w, c] dense, weights are [o, kh, kw, c] dense (OHWI), y is [n, out_h, out_w, o] dense.
/// y[n, i, j, o] = bias[o] + sum_{u, v, c} x[n, i * stride + u - pad_top, j * stride + v - pad_left, c] * w[o, u, v, c],
/// reading zero outside x. Any kernel size; padding may be asymmetric (the VAE's downsampling pads bottom and right only).
struct Conv2dShape {
  index_t n = 0, h = 0, w = 0, c = 0, o = 0;
  index_t kernel_h = 1, kernel_w = 1;
  index_t stride = 1;
  index_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;

  constexpr index_t out_h() const { return (h + pad_top + pad_bottom - kernel_h) / stride + 1; }
  constexpr index_t out_w() const { return (w + pad_left + pad_right - kernel_w) / stride + 1; }
};

template <class Device>
struct Conv2d {
  LPO_MISSING_KERNEL(Device, "conv2d");

  /// y = conv(x, weight) + bias; bias may be null.
  template <class T>
  static void forward(Context<Device>&, const Conv2dShape&, const T* x, const T* weight, const T* bias, T* y);
  /// dx (+)= gradient of x for the output gradient dy; adds when `accumulate`, otherwise overwrites.
  template <class T>
  static void backward_data(Context<Device>&, const Conv2dShape&, const T* dy, const T* weight, T* dx, bool accumulate);
  /// dweight (+)= and dbias (+)= their gradients; either may be null.
  template <class T>
  static void backward_weights(Context<Device>&, const Conv2dShape&, const T* x, const T* dy, T* dweight,
                               bool accumulate_weight, T* dbias, bool accumulate_bias);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
