// SPDX-License-Identifier: MIT
// Differentiable sums and means: per row and over everything.
#pragma once

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/reduce.hpp>

namespace lpo::inline LPO_ABI {

/// [rows, width] -> sum of each row [rows].
template <class T, class Device>
Var<T, 1, Device> row_sums(const Var<T, 2, Device>& x) {
  if (!x.view().dense()) throw ShapeError("[row_sums] the input must be dense; copy the slice first");
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const index_t rows = x.extent(0), width = x.extent(1);
  const auto y = make_output<T>(tape, Extents<1>{rows}, x.requires_gradient());
  kernel::Reduce<Device>::row_sums(tape.context(), rows, width, static_cast<const T*>(x.data()), y.data());
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    const auto dx = gradient_target(x);
    if (!dx) return;
    if (!dx.accumulate) t.context().fill_zero(dx.data, static_cast<std::size_t>(rows * width) * sizeof(T));
    View<T, 2, Device> into(dx.data, x.extents());
    View<const T, 2, Device> dy(output_gradient(y), Extents<2>{rows, 1});
    evaluate(&t.context(), into, into + bcast_last(dy));
  });
  return y;
}

/// Sum of all elements of a dense Var [1].
template <class T, int Rank, class Device, int Channels>
Var<T, 1, Device> sum(const Var<T, Rank, Device, Channels>& x) {
  return row_sums(x.reshape(Extents<2>{1, x.size()}));
}

/// Mean of all elements [1]. Of half elements too, whose sum would often be beyond what a half can hold.
template <class T, int Rank, class Device, int Channels>
Var<T, 1, Device> mean(const Var<T, Rank, Device, Channels>& x) {
  if (x.size() == 0) throw ShapeError(message("[mean] ", to_string(x.extents()), " holds no elements"));
  const double share = 1.0 / static_cast<double>(x.size());
  if constexpr (std::is_same_v<T, half>)
    return sum(Var<compute_t<T>, Rank, Device>(1.0 * x)) * share;
  else
    return sum(x) * share;
}

/// The same of a formula of Vars, `mean(square(x - y))`: it is computed first, as a statement of its own.
template <Operand X>
  requires(expression_of<X>::tracked && !detail::is_var<std::remove_cvref_t<X>>)
auto sum(X&& formula) {
  return sum(Var(std::forward<X>(formula)));
}
template <Operand X>
  requires(expression_of<X>::tracked && !detail::is_var<std::remove_cvref_t<X>>)
auto mean(X&& formula) {
  return mean(Var(std::forward<X>(formula)));
}

}  // namespace lpo::inline LPO_ABI
