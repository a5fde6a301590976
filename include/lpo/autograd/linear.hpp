// SPDX-License-Identifier: MIT
// Differentiable y = x W^T + b, the projection behind every Linear and 1x1 convolution, onto an addend where there is
// one.
#pragma once

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/gemm.hpp>
#include <lpo/kernel/reduce.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

template <class T, class Device>
void expect_linear(const Var<T, 2, Device>& x, const Var<T, 2, Device>& weight, const Var<T, 1, Device>& bias,
                   const Var<T, 2, Device>& addend) {
  expect_one_tape("linear", x, weight, bias, addend);
  if (weight.extent(1) != x.extent(1))
    throw ShapeError(message("[linear] input has ", x.extent(1), " features, weight expects ", weight.extent(1),
                             ": input ", to_string(x.extents()), ", weight ", to_string(weight.extents())));
  if (bias.present() && bias.extent(0) != weight.extent(0))
    throw ShapeError(message("[linear] bias has ", bias.extent(0), " elements, weight makes ", weight.extent(0)));
  if (x.view().strides[1] != 1 && x.extent(1) > 1)
    throw ShapeError("[linear] the innermost axis of the input must be dense");
  if (!weight.view().dense()) throw ShapeError("[linear] the weight must be dense; copy the slice first");
  if (addend.present() && (addend.extents() != Extents<2>{x.extent(0), weight.extent(0)} || !addend.view().dense()))
    throw ShapeError(message("[linear] addend ", to_string(addend.extents()), " must be dense [", x.extent(0), ", ",
                             weight.extent(0), "]"));
}

/// y = x W^T + b, or + addend.
template <class T, class Device>
void linear_forward(const Var<T, 2, Device>& x, const Var<T, 2, Device>& weight, const Var<T, 1, Device>& bias,
                    const Var<T, 2, Device>& addend, T* y) {
  kernel::GemmParams<T> p{};
  p.m = x.extent(0), p.n = weight.extent(0), p.k = x.extent(1);
  p.a = x.data(), p.lda = x.view().strides[0];
  p.b = weight.data(), p.ldb = p.k, p.transpose_b = true;
  p.c = y, p.ldc = p.n;
  p.bias = bias.present() ? bias.data() : nullptr;
  if (addend.present()) p.start = addend.data(), p.beta = 1;
  kernel::Gemm<Device>::run(x.tape().context(), p);
}

template <class T, class Device>
void linear_backward(const Var<T, 2, Device>& x, const Var<T, 2, Device>& weight, const Var<T, 1, Device>& bias,
                     const Var<T, 2, Device>& addend, const T* dy) {
  auto& context = x.tape().context();
  const index_t rows = x.extent(0), in = x.extent(1), out = weight.extent(0), lda = x.view().strides[0];
  if (const auto dx = gradient_target(x)) {
    kernel::GemmParams<T> p{};
    p.m = rows, p.n = in, p.k = out;
    p.a = dy, p.lda = out;
    p.b = weight.data(), p.ldb = in;
    p.c = dx.data, p.ldc = lda;
    p.beta = dx.accumulate ? 1.0f : 0.0f;
    kernel::Gemm<Device>::run(context, p);
  }
  if (const auto dw = gradient_target(weight)) {
    kernel::GemmParams<T> p{};
    p.m = out, p.n = in, p.k = rows;
    p.a = dy, p.lda = out, p.transpose_a = true;
    p.b = x.data(), p.ldb = lda;
    p.c = dw.data, p.ldc = in;
    p.beta = dw.accumulate ? 1.0f : 0.0f;
    kernel::Gemm<Device>::run(context, p);
  }
  if (const auto db = gradient_target(bias))
    kernel::Reduce<Device>::column_sums(context, rows, out, dy, db.data, db.accumulate);
  if (addend.requires_gradient()) add_gradient(addend, View<const T, 2, Device>(dy, addend.extents()));
}

}  // namespace detail

/// x [rows, in], weight [out, in], bias [out] or absent -> [rows, out]. x's rows may have a stride (a slice). The
/// product adds to `addend` [rows, out], if it is present, without a pass of its own: a residual connection.
template <class T, class Device>
Var<T, 2, Device> linear(const Var<T, 2, Device>& x, const Var<T, 2, Device>& weight,
                         const Var<T, 1, Device>& bias = {}, const Var<T, 2, Device>& addend = {}) {
  detail::expect_linear(x, weight, bias, addend);
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(
      tape, Extents<2>{x.extent(0), weight.extent(0)},
      x.requires_gradient() || weight.requires_gradient() || bias.requires_gradient() || addend.requires_gradient());
  detail::linear_forward(x, weight, bias, addend, y.data());
  if (y.requires_gradient())
    tape.push(mark, y.slot(),
              [=](Tape<Device>&) { detail::linear_backward(x, weight, bias, addend, output_gradient(y)); });
  return y;
}

}  // namespace lpo::inline LPO_ABI
