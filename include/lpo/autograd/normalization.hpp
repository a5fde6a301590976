// SPDX-License-Identifier: MIT
// Differentiable group norm (with optional SiLU), layer norm and softmax.
#pragma once

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/normalization.hpp>

namespace lpo::inline LPO_ABI {

/// x [n, h, w, c] dense, weight and bias [c] -> norm over (h, w, c / groups), optionally followed by SiLU.
template <class T, class Device>
Var<T, 4, Device> group_norm(const Var<T, 4, Device>& x, const Var<T, 1, Device>& weight, const Var<T, 1, Device>& bias,
                             index_t groups, float epsilon, bool with_silu) {
  const index_t c = x.extent(3);
  if (groups <= 0 || c % groups != 0)
    throw ShapeError(message("[group_norm] ", c, " channels cannot be split into ", groups, " groups"));
  if (weight.extent(0) != c || bias.extent(0) != c)
    throw ShapeError(message("[group_norm] input ", to_string(x.extents()), " needs ", c, " weights and biases, given ",
                             weight.extent(0), " and ", bias.extent(0)));
  if (!x.view().dense()) throw ShapeError("[group_norm] the input must be dense; copy the slice first");
  const kernel::GroupNormShape shape{x.extent(0), x.extent(1) * x.extent(2), c, groups, epsilon, with_silu};
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, x.extents(),
                                x.requires_gradient() || weight.requires_gradient() || bias.requires_gradient());
  auto* mean = tape.template allocate<compute_t<T>>(shape.n * groups);
  auto* inverse = tape.template allocate<compute_t<T>>(shape.n * groups);
  const T *input = x.data(), *w = weight.data(), *b = bias.data();
  kernel::GroupNorm<Device>::forward(tape.context(), shape, input, w, b, y.data(), mean, inverse);
  if (!y.requires_gradient()) return y;

  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    const auto dx = gradient_target(x);
    const auto dw = gradient_target(weight);
    const auto db = gradient_target(bias);
    kernel::GroupNorm<Device>::backward(t.context(), shape, input, w, b, static_cast<const compute_t<T>*>(mean),
                                        static_cast<const compute_t<T>*>(inverse), output_gradient(y), dx.data, dx.accumulate,
                                        dw.data, dw.accumulate, db.data, db.accumulate);
  });
  return y;
}

/// x [rows, c] dense, weight and bias [c] -> norm over c.
template <class T, class Device>
Var<T, 2, Device> layer_norm(const Var<T, 2, Device>& x, const Var<T, 1, Device>& weight, const Var<T, 1, Device>& bias,
                             float epsilon) {
  const index_t rows = x.extent(0), c = x.extent(1);
  if (weight.extent(0) != c || bias.extent(0) != c)
    throw ShapeError(message("[layer_norm] input ", to_string(x.extents()), " needs ", c, " weights and biases, given ",
                             weight.extent(0), " and ", bias.extent(0)));
  if (!x.view().dense()) throw ShapeError("[layer_norm] the input must be dense; copy the slice first");
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, x.extents(),
                                x.requires_gradient() || weight.requires_gradient() || bias.requires_gradient());
  auto* mean = tape.template allocate<compute_t<T>>(rows);
  auto* inverse = tape.template allocate<compute_t<T>>(rows);
  const T *input = x.data(), *w = weight.data(), *b = bias.data();
  kernel::LayerNorm<Device>::forward(tape.context(), rows, c, epsilon, input, w, b, y.data(), mean, inverse);
  if (!y.requires_gradient()) return y;

  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    const auto dx = gradient_target(x);
    const auto dw = gradient_target(weight);
    const auto db = gradient_target(bias);
    kernel::LayerNorm<Device>::backward(t.context(), rows, c, input, w, static_cast<const compute_t<T>*>(mean),
                                        static_cast<const compute_t<T>*>(inverse), output_gradient(y), dx.data, dx.accumulate,
                                        dw.data, dw.accumulate, db.data, db.accumulate);
  });
  return y;
}

/// Softmax over the last axis of [rows, c].
template <class T, class Device>
Var<T, 2, Device> softmax(const Var<T, 2, Device>& x) {
  if (!x.view().dense()) throw ShapeError("[softmax] the input must be dense; copy the slice first");
  const index_t rows = x.extent(0), c = x.extent(1);
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, x.extents(), x.requires_gradient());
  kernel::Softmax<Device>::forward(tape.context(), rows, c, static_cast<const T*>(x.data()), y.data());
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    if (const auto dx = gradient_target(x))
      kernel::Softmax<Device>::backward(t.context(), rows, c, static_cast<const T*>(y.data()), output_gradient(y), dx.data,
                                        dx.accumulate);
  });
  return y;
}

}  // namespace lpo::inline LPO_ABI
