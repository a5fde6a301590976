// SPDX-License-Identifier: MIT
// Differentiable GEGLU (arXiv 2002.05202): a projection to values and gates, and values times gelu(gates).
#pragma once

#include <lpo/autograd/linear.hpp>
#include <lpo/kernel/gated_product.hpp>

namespace lpo::inline LPO_ABI {

/// x [rows, in], weight [2 hidden, in], bias [2 hidden] or absent -> value * gelu(gate) [rows, hidden], where
/// (value, gate) = x W^T + b. In inference, values and gates need no memory where the device has a kernel for both.
template <class T, class Device>
Var<T, 2, Device> geglu(const Var<T, 2, Device>& x, const Var<T, 2, Device>& weight, const Var<T, 1, Device>& bias) {
  detail::expect_linear(x, weight, bias, Var<T, 2, Device>());
  const index_t rows = x.extent(0), width = weight.extent(0), hidden = width / 2;
  if (width % 2 != 0) throw ShapeError(message("[geglu] the weight makes ", width, " values, expected an even number"));
  auto& tape = x.tape();
  const bool requires_gradient = x.requires_gradient() || weight.requires_gradient() || bias.requires_gradient();
  const auto gate = [&](const Var<T, 2, Device>& both) {
    return both.slice(1, 0, hidden) * gelu(both.slice(1, hidden, width));
  };
  kernel::GatedProductParams<T> p;
  p.rows = rows, p.in = x.extent(1), p.hidden = hidden;
  p.x = x.data(), p.x_row = x.view().strides[0];
  p.weight = weight.data();
  p.bias = bias.present() ? bias.data() : nullptr;
  if (!kernel::GatedProduct<Device>::can_run(tape.context(), p))
    return Var<T, 2, Device>(gate(linear(x, weight, bias)));

  const auto mark = tape.mark();
  Var<T, 2, Device> both;
  if (requires_gradient && tape.recording()) both = make_output<T>(tape, Extents<2>{rows, width}, true);
  const auto gated_mark = tape.mark();
  const auto gated = make_output<T>(tape, Extents<2>{rows, hidden}, requires_gradient);
  p.both = both.present() ? both.data() : nullptr;
  p.out = gated.data();
  kernel::GatedProduct<Device>::run(tape.context(), p);
  if (!gated.requires_gradient()) return gated;
  tape.push(mark, both.slot(), [=](Tape<Device>&) {
    detail::linear_backward(x, weight, bias, Var<T, 2, Device>(), output_gradient(both));
  });
  detail::push_statement(detail::forget_channels(gate(both)), gated, gated_mark);
  return gated;
}

}  // namespace lpo::inline LPO_ABI
