// SPDX-License-Identifier: MIT
// Differentiable concatenation along the channels or the batch, repetition, and the dense copy of a strided Var.
#pragma once

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/copy.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// Rows of a Var when all axes but the last are merged; throws when they cannot be.
template <class T, int Rank, class Device>
index_t row_stride(const char* operation, const Var<T, Rank, Device>& x) {
  const auto& v = x.view();
  if (v.extents[Rank - 1] > 1 && v.strides[Rank - 1] != 1)
    throw ShapeError(message("[", operation, "] the innermost axis of ", to_string(v.extents), " is strided"));
  for (int axis = Rank - 3; axis >= 0; --axis)
    if (v.extents[axis] > 1 && v.strides[axis] != v.strides[axis + 1] * v.extents[axis + 1])
      throw ShapeError(message("[", operation, "] only the axis before the innermost of ", to_string(v.extents), " may have a stride"));
  if constexpr (Rank >= 2)
    return v.strides[Rank - 2];
  else
    return v.extents[0];
}

}  // namespace detail

/// [..., a] and [..., b] -> [..., a + b]
template <class T, int Rank, class Device>
Var<T, Rank, Device> concat_channels(const Var<T, Rank, Device>& a, const Var<T, Rank, Device>& b) {
  static_assert(Rank >= 2, "lpo concat_channels: needs at least two axes");
  detail::expect_one_tape("concat_channels", a, b);
  for (int axis = 0; axis + 1 < Rank; ++axis)
    if (a.extent(axis) != b.extent(axis))
      throw ShapeError(message("[concat_channels] ", to_string(a.extents()), " and ", to_string(b.extents()),
                               " differ outside the channels"));
  auto extents = a.extents();
  extents[Rank - 1] += b.extent(Rank - 1);
  const index_t wa = a.extent(Rank - 1), wb = b.extent(Rank - 1), width = wa + wb;
  const index_t rows = width == 0 ? 0 : extents.size() / width;
  const index_t sa = detail::row_stride("concat_channels", a), sb = detail::row_stride("concat_channels", b);
  auto& tape = a.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, extents, a.requires_gradient() || b.requires_gradient());
  kernel::CopyRows<Device>::run(tape.context(), rows, wa, static_cast<const T*>(a.data()), sa, y.data(), width, false);
  kernel::CopyRows<Device>::run(tape.context(), rows, wb, static_cast<const T*>(b.data()), sb, y.data() + wa, width, false);
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    const T* dy = output_gradient(y);
    if (const auto da = gradient_target(a))
      kernel::CopyRows<Device>::run(t.context(), rows, wa, dy, width, da.data, sa, da.accumulate);
    if (const auto db = gradient_target(b))
      kernel::CopyRows<Device>::run(t.context(), rows, wb, dy + wa, width, db.data, sb, db.accumulate);
  });
  return y;
}

/// Dense Vars [a, ...] and [b, ...] -> [a + b, ...]
template <class T, int Rank, class Device>
Var<T, Rank, Device> concat_batch(const Var<T, Rank, Device>& a, const Var<T, Rank, Device>& b) {
  detail::expect_one_tape("concat_batch", a, b);
  for (int axis = 1; axis < Rank; ++axis)
    if (a.extent(axis) != b.extent(axis))
      throw ShapeError(message("[concat_batch] ", to_string(a.extents()), " and ", to_string(b.extents()), " differ outside the batch"));
  if (!a.view().dense() || !b.view().dense()) throw ShapeError("[concat_batch] inputs must be dense");
  auto extents = a.extents();
  extents[0] += b.extent(0);
  auto& tape = a.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, extents, a.requires_gradient() || b.requires_gradient());
  const index_t na = a.size(), nb = b.size();
  kernel::CopyRows<Device>::run(tape.context(), 1, na, static_cast<const T*>(a.data()), na, y.data(), na, false);
  kernel::CopyRows<Device>::run(tape.context(), 1, nb, static_cast<const T*>(b.data()), nb, y.data() + na, nb, false);
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    const T* dy = output_gradient(y);
    if (const auto da = gradient_target(a)) kernel::CopyRows<Device>::run(t.context(), 1, na, dy, na, da.data, na, da.accumulate);
    if (const auto db = gradient_target(b))
      kernel::CopyRows<Device>::run(t.context(), 1, nb, dy + na, nb, db.data, nb, db.accumulate);
  });
  return y;
}

/// A dense Var [n, ...] again and again until it has `rows` rows, a multiple of n; the Var itself when it has them.
template <class T, int Rank, class Device, int Channels>
Var<T, Rank, Device, Channels> repeat_batch(const Var<T, Rank, Device, Channels>& x, index_t rows) {
  const index_t n = x.extent(0), size = x.size();
  if (n == rows) return x;
  if (n == 0 || rows % n != 0)
    throw ShapeError(message("[repeat_batch] ", to_string(x.extents()), " cannot be repeated to ", rows, " rows"));
  if (!x.view().dense()) throw ShapeError("[repeat_batch] the input must be dense");
  auto extents = x.extents();
  extents[0] = rows;
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T, Channels>(tape, extents, x.requires_gradient());
  const index_t copies = rows / n;
  kernel::CopyRows<Device>::run(tape.context(), copies, size, static_cast<const T*>(x.data()), 0, y.data(), size,
                                false);
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    const T* dy = output_gradient(y);
    for (index_t copy = 0; copy < copies; ++copy)
      if (const auto dx = gradient_target(x))
        kernel::CopyRows<Device>::run(t.context(), 1, size, dy + copy * size, size, dx.data, size, dx.accumulate);
  });
  return y;
}

/// A dense copy of a strided Var (a slice); returns the Var itself when it is dense.
template <class T, int Rank, class Device>
Var<T, Rank, Device> contiguous(const Var<T, Rank, Device>& x) {
  if (x.view().dense()) return x;
  return Var<T, Rank, Device>(to_expression(x));
}

}  // namespace lpo::inline LPO_ABI
