// SPDX-License-Identifier: MIT
// Differentiable 2-D convolution, channels last.
#pragma once

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/conv2d.hpp>

namespace lpo::inline LPO_ABI {

/// Stride and zero padding of a convolution.
struct Conv2dOptions {
  index_t stride = 1;
  index_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;

  static constexpr Conv2dOptions same(index_t kernel, index_t stride = 1) {
    return {stride, kernel / 2, kernel / 2, kernel / 2, kernel / 2};
  }
};

/// x [n, h, w, c] dense, weight [o, kh, kw, c], bias [o] or absent -> [n, out_h, out_w, o].
template <class T, class Device>
Var<T, 4, Device> conv2d(const Var<T, 4, Device>& x, const Var<T, 4, Device>& weight, const Var<T, 1, Device>& bias,
                         const Conv2dOptions& options) {
  if (x.extent(3) != weight.extent(3))
    throw ShapeError(message("[conv2d] input has ", x.extent(3), " channels, weight expects ", weight.extent(3), ": input ",
                             to_string(x.extents()), ", weight ", to_string(weight.extents())));
  if (bias.present() && bias.extent(0) != weight.extent(0))
    throw ShapeError(message("[conv2d] bias has ", bias.extent(0), " elements, weight makes ", weight.extent(0), " channels"));
  if (!x.view().dense()) throw ShapeError("[conv2d] the input must be dense; copy the slice first");
  if (!weight.view().dense()) throw ShapeError("[conv2d] the weight must be dense; copy the slice first");
  if (options.stride < 1 || options.pad_top < 0 || options.pad_bottom < 0 || options.pad_left < 0 || options.pad_right < 0)
    throw ValueError(message("[conv2d] stride ", options.stride, " must be positive and padding must not be negative"));
  const kernel::Conv2dShape shape{x.extent(0),        x.extent(1),      x.extent(2),       x.extent(3),
                                  weight.extent(0),   weight.extent(1), weight.extent(2),  options.stride,
                                  options.pad_top,    options.pad_bottom, options.pad_left, options.pad_right};
  if (shape.h + shape.pad_top + shape.pad_bottom < shape.kernel_h || shape.w + shape.pad_left + shape.pad_right < shape.kernel_w)
    throw ShapeError(message("[conv2d] input ", to_string(x.extents()), " is smaller than the kernel ", to_string(weight.extents())));
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, Extents<4>{shape.n, shape.out_h(), shape.out_w(), shape.o},
                                x.requires_gradient() || weight.requires_gradient() || bias.requires_gradient());
  kernel::Conv2d<Device>::forward(tape.context(), shape, static_cast<const T*>(x.data()), static_cast<const T*>(weight.data()),
                                  bias.present() ? static_cast<const T*>(bias.data()) : nullptr, y.data());
  if (!y.requires_gradient()) return y;

  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    const T* dy = output_gradient(y);
    const T* input = x.data();
    const T* filter = weight.data();
    if (const auto dx = gradient_target(x))
      kernel::Conv2d<Device>::backward_data(t.context(), shape, dy, filter, dx.data, dx.accumulate);
    const auto dw = gradient_target(weight);
    const auto db = gradient_target(bias);
    if (dw || db)
      kernel::Conv2d<Device>::backward_weights(t.context(), shape, input, dy, dw.data, dw.accumulate, db.data, db.accumulate);
  });
  return y;
}

}  // namespace lpo::inline LPO_ABI
