// SPDX-License-Identifier: MIT
// Contracts of nearest upsampling and of the mean over space, channels last.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// x: [n, h, w, c] dense -> y: [n, out_h, out_w, c]; y[i, j] = x[i * h / out_h, j * w / out_w] (integer division).
struct UpsampleShape {
  index_t n = 0, h = 0, w = 0, c = 0, out_h = 0, out_w = 0;
};

template <class Device>
struct UpsampleNearest {
  LPO_MISSING_KERNEL(Device, "upsample_nearest");

  template <class T>
  static void forward(Context<Device>&, const UpsampleShape&, const T* x, T* y);
  template <class T>
  static void backward(Context<Device>&, const UpsampleShape&, const T* dy, T* dx, bool accumulate);
};

/// y[n, c] = mean over `spatial` of x[n, spatial, c]; sums in float or better.
template <class Device>
struct SpatialMean {
  LPO_MISSING_KERNEL(Device, "spatial_mean");

  template <class T>
  static void forward(Context<Device>&, index_t n, index_t spatial, index_t c, const T* x, T* y);
  template <class T>
  static void backward(Context<Device>&, index_t n, index_t spatial, index_t c, const T* dy, T* dx, bool accumulate);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
