// SPDX-License-Identifier: MIT
// Differentiable y = x W^T + b + s (x A^T) B^T: a projection with a low-rank adapter (arXiv 2106.09685), made of
// products alone.
#pragma once

#include <lpo/autograd/linear.hpp>

namespace lpo::inline LPO_ABI {

/// x [rows, in], weight [out, in], bias [out] and addend [rows, out] or absent (see linear), `down` A [rank, in], `up`
/// B [out, rank] -> [rows, out]. The adapter's product adds to the projection's, so nothing passes over [rows, out]
/// once more. B = 0 gives the bits of linear().
template <class T, class Device>
Var<T, 2, Device> adapted_linear(const Var<T, 2, Device>& x, const Var<T, 2, Device>& weight,
                                 const Var<T, 1, Device>& bias, const Var<T, 2, Device>& down,
                                 const Var<T, 2, Device>& up, double scale, const Var<T, 2, Device>& addend = {}) {
  detail::expect_linear(x, weight, bias, addend);
  const index_t rows = x.extent(0), in = x.extent(1), out = weight.extent(0), rank = down.extent(0);
  if (down.extent(1) != in || up.extent(0) != out || up.extent(1) != rank || !down.view().dense() || !up.view().dense())
    throw ShapeError(message("[adapted_linear] adapter ", to_string(down.extents()), " and ", to_string(up.extents()),
                             " does not fit the weight ", to_string(weight.extents()),
                             "; expected dense [rank, in] and [out, rank]"));
  const auto factor = static_cast<float>(scale);
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, Extents<2>{rows, out},
                                x.requires_gradient() || weight.requires_gradient() || bias.requires_gradient() ||
                                    down.requires_gradient() || up.requires_gradient() || addend.requires_gradient());
  T* const inner = tape.template allocate<T>(rows * rank);  // x A^T [rows, rank]
  detail::linear_forward(x, weight, bias, addend, y.data());
  detail::linear_forward(x, down, {}, {}, inner);
  kernel::GemmParams<T> add{};
  add.m = rows, add.n = out, add.k = rank;
  add.a = inner, add.lda = rank;
  add.b = up.data(), add.ldb = rank, add.transpose_b = true;
  add.c = y.data(), add.ldc = out;
  add.alpha = factor, add.beta = 1;
  kernel::Gemm<Device>::run(tape.context(), add);
  if (!y.requires_gradient()) return y;

  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    const T* dy = output_gradient(y);
    auto& context = t.context();
    detail::linear_backward(x, weight, bias, addend, dy);
    if (const auto target = gradient_target(up)) {  // s dy^T (x A^T)
      kernel::GemmParams<T> p{};
      p.m = out, p.n = rank, p.k = rows;
      p.a = dy, p.lda = out, p.transpose_a = true;
      p.b = inner, p.ldb = rank;
      p.c = target.data, p.ldc = rank;
      p.alpha = factor, p.beta = target.accumulate ? 1.0f : 0.0f;
      kernel::Gemm<Device>::run(context, p);
    }
    if (!down.requires_gradient() && !x.requires_gradient()) return;
    Scratch<Device> scratch(context);
    T* const gradient = scratch.template allocate<T>(rows * rank);  // of x A^T: s dy B
    kernel::GemmParams<T> p{};
    p.m = rows, p.n = rank, p.k = out;
    p.a = dy, p.lda = out;
    p.b = up.data(), p.ldb = rank;
    p.c = gradient, p.ldc = rank;
    p.alpha = factor;
    kernel::Gemm<Device>::run(context, p);
    detail::linear_backward(x, down, {}, {}, static_cast<const T*>(gradient));
  });
  return y;
}

}  // namespace lpo::inline LPO_ABI
