// SPDX-License-Identifier: MIT
// Multi-head attention layer of diffusion transformers: self-attention, or cross-attention to a text context.
#pragma once

#include <lpo/autograd/attention.hpp>
#include <lpo/nn/linear.hpp>

namespace lpo::inline LPO_ABI {

/// Queries from x [n, s, Width], keys and values from context [n, k, ContextWidth] -> [n, s, Width], added to `residual` of the same
/// extents.
/// Keys: to_q, to_k, to_v (no bias), to_out.0. All four can carry a LoRA.
template <int Width, int ContextWidth, int Heads, class T, class Device>
struct Attention {
  static_assert(Width % Heads == 0, "lpo Attention: the width must be a multiple of the heads");
  LoraLinear<Width, Width, T, Device, false> to_q;
  LoraLinear<ContextWidth, Width, T, Device, false> to_k, to_v;
  LoraLinear<Width, Width, T, Device, true> to_out;

  template <int CX, int CC>
  Var<T, 3, Device, Width> operator()(const Var<T, 3, Device, CX>& x, const Var<T, 3, Device, CC>& context,
                                      const Var<T, 3, Device, Width>& residual) {
    const Var<T, 3, Device> q = to_q(x), k = to_k(context), v = to_v(context);
    return to_out(attention(q, k, v, Heads), residual);
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("to_q", to_q);
    v("to_k", to_k);
    v("to_v", to_v);
    v("to_out.0", to_out);
  }
};

}  // namespace lpo::inline LPO_ABI
