// SPDX-License-Identifier: MIT
// What CLIP's text and vision towers are made of: multi-head self-attention and the two-layer network after it.
#pragma once

#include <lpo/autograd/attention.hpp>
#include <lpo/nn/linear.hpp>

namespace lpo::inline LPO_ABI::detail {

/// Multi-head self-attention with biases; `Causal`: positions attend to earlier ones only. Keys: q_proj, k_proj,
/// v_proj, out_proj. All four can carry a LoRA.
template <int Width, int Heads, bool Causal, class T, class Device>
struct ClipAttention {
  static_assert(Width % Heads == 0, "lpo CLIP: the width must be a multiple of the heads");
  LoraLinear<Width, Width, T, Device, true> q_proj, k_proj, v_proj, out_proj;

  Var<T, 3, Device, Width> operator()(const Var<T, 3, Device, Width>& x) {
    const Var<T, 3, Device> q = q_proj(x), k = k_proj(x), v = v_proj(x);
    return out_proj(attention(q, k, v, Heads, Causal));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("k_proj", k_proj);
    v("v_proj", v_proj);
    v("q_proj", q_proj);
    v("out_proj", out_proj);
  }
};

template <int Width, int Hidden, bool QuickGelu, class T, class Device>
struct ClipMlp {
  Linear<Width, Hidden, T, Device> fc1;
  Linear<Hidden, Width, T, Device> fc2;

  Var<T, 3, Device, Width> operator()(const Var<T, 3, Device, Width>& x) {
    const auto wide = fc1(x);  // [n, s, Hidden]
    if constexpr (QuickGelu) {
      Var active = quick_gelu(wide);
      return fc2(active);
    } else {
      Var active = gelu(wide);
      return fc2(active);
    }
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("fc1", fc1);
    v("fc2", fc2);
  }
};

}  // namespace lpo::inline LPO_ABI::detail
