// SPDX-License-Identifier: MIT
// Differentiable y = x W^T + b, the projection behind every Linear and 1x1 convolution.
#pragma once

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/gemm.hpp>
#include <lpo/kernel/reduce.hpp>

namespace lpo::inline LPO_ABI {

/// x [rows, in], weight [out, in], bias [out] or absent -> [rows, out]. x's rows may have a stride (a slice).
template <class T, class Device>
Var<T, 2, Device> linear(const Var<T, 2, Device>& x, const Var<T, 2, Device>& weight, const Var<T, 1, Device>& bias = {}) {
  const index_t rows = x.extent(0), in = x.extent(1), out_width = weight.extent(0);
  if (weight.extent(1) != in)
    throw ShapeError(message("[linear] input has ", in, " features, weight expects ", weight.extent(1), ": input ",
                             to_string(x.extents()), ", weight ", to_string(weight.extents())));
  if (bias.present() && bias.extent(0) != out_width)
    throw ShapeError(message("[linear] bias has ", bias.extent(0), " elements, weight makes ", out_width));
  if (x.view().strides[1] != 1 && in > 1) throw ShapeError("[linear] the innermost axis of the input must be dense");
  if (!weight.view().dense()) throw ShapeError("[linear] the weight must be dense; copy the slice first");
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const index_t lda = x.view().strides[0];
  const auto y = make_output<T>(tape, Extents<2>{rows, out_width},
                                x.requires_gradient() || weight.requires_gradient() || bias.requires_gradient());
  kernel::GemmParams<T> forward{};
  forward.m = rows, forward.n = out_width, forward.k = in;
  forward.a = x.data(), forward.lda = lda;
  forward.b = weight.data(), forward.ldb = in, forward.transpose_b = true;
  forward.c = y.data(), forward.ldc = out_width;
  forward.bias = bias.present() ? bias.data() : nullptr;
  kernel::Gemm<Device>::run(tape.context(), forward);
  if (!y.requires_gradient()) return y;

  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    const T* dy = output_gradient(y);
    auto& context = t.context();
    if (const auto dx = gradient_target(x)) {
      kernel::GemmParams<T> p{};
      p.m = rows, p.n = in, p.k = out_width;
      p.a = dy, p.lda = out_width;
      p.b = weight.data(), p.ldb = in;
      p.c = dx.data, p.ldc = lda;
      p.beta = dx.accumulate ? 1.0f : 0.0f;
      kernel::Gemm<Device>::run(context, p);
    }
    if (const auto dw = gradient_target(weight)) {
      kernel::GemmParams<T> p{};
      p.m = out_width, p.n = in, p.k = rows;
      p.a = dy, p.lda = out_width, p.transpose_a = true;
      p.b = x.data(), p.ldb = lda;
      p.c = dw.data, p.ldc = in;
      p.beta = dw.accumulate ? 1.0f : 0.0f;
      kernel::Gemm<Device>::run(context, p);
    }
    if (const auto db = gradient_target(bias))
      kernel::Reduce<Device>::column_sums(context, rows, out_width, dy, db.data, db.accumulate);
  });
  return y;
}

}  // namespace lpo::inline LPO_ABI
