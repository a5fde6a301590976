// SPDX-License-Identifier: MIT
// Differentiable scaled dot-product attention over heads.
#pragma once

#include <algorithm>
#include <cmath>

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/attention.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// Whether two Vars of one slot have elements in common. Parts of one fused projection do not.
template <class T, class Device>
bool share_elements(const Var<T, 3, Device>& a, const Var<T, 3, Device>& b) {
  if (a.slot() != b.slot() || a.size() == 0 || b.size() == 0) return false;
  const T *first = std::min(a.data(), b.data()), *second = std::max(a.data(), b.data());
  const auto& low = first == a.data() ? a : b;
  const auto& high = first == a.data() ? b : a;
  const index_t row = low.view().strides[1], distance = second - first;
  if (row != high.view().strides[1]) return true;
  const index_t column = distance % row;  // where high's columns begin, counted from low's
  if (column >= low.extent(2) && column + high.extent(2) <= row) return false;
  return distance / row < low.extent(0) * low.extent(1);
}

}  // namespace detail

/// q [b, queries, heads * width], k and v [b, keys, heads * width] -> [b, queries, heads * width];
/// softmax(q k^T / sqrt(width)) v per head. Inputs may be slices of a wider projection (any row stride).
template <class T, class Device>
Var<T, 3, Device> attention(const Var<T, 3, Device>& q, const Var<T, 3, Device>& k, const Var<T, 3, Device>& v, index_t heads,
                            bool causal = false) {
  detail::expect_one_tape("attention", q, k, v);
  const index_t inner = q.extent(2);
  if (heads <= 0 || inner % heads != 0)
    throw ShapeError(message("[attention] ", inner, " channels cannot be split into ", heads, " heads"));
  detail::expect_same("attention", "keys", k.extents(), "values", v.extents());
  if (k.extent(0) != q.extent(0) || k.extent(2) != inner)
    throw ShapeError(message("[attention] queries ", to_string(q.extents()), " and keys ", to_string(k.extents()),
                             " differ in batch or channels"));
  if (causal && q.extent(1) != k.extent(1)) throw ShapeError("[attention] a causal mask needs as many queries as keys");
  for (const auto* part : {&q, &k, &v})
    if (part->view().strides[2] != 1 ||
        (part->extent(0) > 1 && part->view().strides[0] != part->view().strides[1] * part->extent(1)))
      throw ShapeError("[attention] inputs may only be strided between positions; copy them first");
  kernel::AttentionShape shape;
  shape.batch = q.extent(0), shape.queries = q.extent(1), shape.keys = k.extent(1);
  shape.heads = heads, shape.width = inner / heads;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(shape.width));
  shape.causal = causal;
  shape.q_row = q.view().strides[1], shape.k_row = k.view().strides[1], shape.v_row = v.view().strides[1];
  shape.out_row = inner;
  auto& tape = q.tape();
  const auto mark = tape.mark();
  const auto out = make_output<T>(tape, q.extents(), q.requires_gradient() || k.requires_gradient() || v.requires_gradient());
  auto* log_sum_exp =
      out.requires_gradient() ? tape.template allocate<compute_t<T>>(shape.batch * heads * shape.queries) : nullptr;
  const T *qd = q.data(), *kd = k.data(), *vd = v.data();
  kernel::Attention<Device>::forward(tape.context(), shape, qd, kd, vd, out.data(), log_sum_exp);
  if (!out.requires_gradient()) return out;

  tape.push(mark, out.slot(), [=](Tape<Device>& t) {
    const auto dq = gradient_target(q);
    const auto dk = gradient_target(k);
    const auto dv = gradient_target(v);
    // The kernel writes three gradients in no particular order. Where inputs share elements (keys that are also the
    // values), each gets a buffer of its own first.
    Scratch<Device> scratch(t.context());
    const auto own = [&](const auto& x, const GradientTarget<T>& target, bool shared) -> GradientTarget<T> {
      if (!target || !shared) return target;
      return {scratch.template allocate<T>(x.extent(0) * x.extent(1) * x.view().strides[1]), false};
    };
    const bool q_shared = detail::share_elements(q, k) || detail::share_elements(q, v);
    const bool k_shared = detail::share_elements(q, k) || detail::share_elements(k, v);
    const bool v_shared = detail::share_elements(q, v) || detail::share_elements(k, v);
    const auto gq = own(q, dq, q_shared), gk = own(k, dk, k_shared), gv = own(v, dv, v_shared);
    kernel::Attention<Device>::backward(t.context(), shape, qd, kd, vd, static_cast<const T*>(out.data()),
                                        static_cast<const compute_t<T>*>(log_sum_exp), output_gradient(out), gq.data,
                                        gq.accumulate, gk.data, gk.accumulate, gv.data, gv.accumulate);
    const auto deliver = [&](const auto& x, const GradientTarget<T>& from, const GradientTarget<T>& to) {
      if (from.data == to.data) return;
      const View<T, 3, Device> source(from.data, x.extents(), x.view().strides), target(to.data, x.extents(), x.view().strides);
      if (to.accumulate)
        evaluate(&t.context(), target, target + source);
      else
        evaluate(&t.context(), target, source);
    };
    deliver(q, gq, dq);
    deliver(k, gk, dk);
    deliver(v, gv, dv);
  });
  return out;
}

}  // namespace lpo::inline LPO_ABI
