// SPDX-License-Identifier: MIT
// Differentiable nearest upsampling and mean over space.
#pragma once

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/resample.hpp>

namespace lpo::inline LPO_ABI {

/// x [n, h, w, c] -> [n, out_h, out_w, c].
template <class T, class Device>
Var<T, 4, Device> upsample_nearest(const Var<T, 4, Device>& x, index_t out_h, index_t out_w) {
  if (!x.view().dense()) throw ShapeError("[upsample_nearest] the input must be dense; copy the slice first");
  if (out_h <= 0 || out_w <= 0) throw ShapeError(message("[upsample_nearest] output ", out_h, " x ", out_w, " is empty"));
  const kernel::UpsampleShape shape{x.extent(0), x.extent(1), x.extent(2), x.extent(3), out_h, out_w};
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, Extents<4>{shape.n, out_h, out_w, shape.c}, x.requires_gradient());
  kernel::UpsampleNearest<Device>::forward(tape.context(), shape, static_cast<const T*>(x.data()), y.data());
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    if (const auto dx = gradient_target(x))
      kernel::UpsampleNearest<Device>::backward(t.context(), shape, output_gradient(y), dx.data, dx.accumulate);
  });
  return y;
}

/// x [n, h, w, c] -> mean over h and w [n, c].
template <class T, class Device>
Var<T, 2, Device> spatial_mean(const Var<T, 4, Device>& x) {
  if (!x.view().dense()) throw ShapeError("[spatial_mean] the input must be dense; copy the slice first");
  const index_t n = x.extent(0), spatial = x.extent(1) * x.extent(2), c = x.extent(3);
  if (spatial == 0) throw ShapeError(message("[spatial_mean] input ", to_string(x.extents()), " has no positions"));
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, Extents<2>{n, c}, x.requires_gradient());
  kernel::SpatialMean<Device>::forward(tape.context(), n, spatial, c, static_cast<const T*>(x.data()), y.data());
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    if (const auto dx = gradient_target(x))
      kernel::SpatialMean<Device>::backward(t.context(), n, spatial, c, output_gradient(y), dx.data, dx.accumulate);
  });
  return y;
}

}  // namespace lpo::inline LPO_ABI
