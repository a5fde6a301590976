// SPDX-License-Identifier: MIT
// Multi-head attention layer of diffusion transformers: self-attention, or cross-attention to a text context.
#pragma once

#include <array>

#include <lpo/autograd/attention.hpp>
#include <lpo/nn/linear.hpp>

namespace lpo::inline LPO_ABI {

/// Queries from x [n, s, Width], keys and values from context [n, k, ContextWidth] -> [n, s, Width], added to
/// `residual` of the same extents unless that is absent ({}). Keys: to_q, to_k, to_v (no bias), to_out.0. All four can carry a LoRA.
template <int Width, int ContextWidth, int Heads, class T, class Device>
struct Attention {
  static_assert(Width % Heads == 0, "lpo Attention: the width must be a multiple of the heads");
  LoraLinear<Width, Width, T, Device, false> to_q;
  LoraLinear<ContextWidth, Width, T, Device, false> to_k, to_v;
  LoraLinear<Width, Width, T, Device, true> to_out;

  template <int CX, int CC>
  Var<T, 3, Device, Width> operator()(const Var<T, 3, Device, CX>& x, const Var<T, 3, Device, CC>& context,
                                      const Var<T, 3, Device, Width>& residual) {
    const Var<T, 3, Device> input = x, text = context;
    if constexpr (Width == ContextWidth) {
      if (input.data() == text.data() && input.slot() == text.slot()) {
        const std::array parts = {to_q.weights_on(x.tape()), to_k.weights_on(x.tape()), to_v.weights_on(x.tape())};
        if (can_project_together(parts)) {
          const auto [q, k, v] = projections(input, parts);
          return to_out(attention(q, k, v, Heads), residual);
        }
        const Var<T, 3, Device> q = to_q(x), k = to_k(context), v = to_v(context);
        return to_out(attention(q, k, v, Heads), residual);
      }
    }
    const Var<T, 3, Device> q = to_q(x);
    const auto [k, v] = keys_and_values(text);
    return to_out(attention(q, k, v, Heads), residual);
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("to_q", to_q);
    v("to_k", to_k);
    v("to_v", to_v);
    v("to_out.0", to_out);
  }

 private:
  using KeysAndValues = std::array<Var<T, 3, Device>, 2>;

  /// Of a text: kept from an earlier pass where the tape keeps them.
  KeysAndValues keys_and_values(const Var<T, 3, Device>& text) {
    auto& tape = text.tape();
    auto* const kept = tape.kept_projections();
    if (kept == nullptr) return project_text(text);
    const Extents<3> extents{text.extent(0), text.extent(1), Width};
    const index_t size = extents.size();
    const auto place = kept->place(this, static_cast<std::size_t>(2 * size) * sizeof(T), tape.adapters());
    T* const keys = reinterpret_cast<T*>(place.data);
    if (!place.filled) {
      const auto start = tape.snapshot();
      const auto made = project_text(text);
      for (std::size_t i = 0; i < 2; ++i)
        evaluate(&tape.context(), View<T, 3, Device>(keys + static_cast<index_t>(i) * size, extents), made[i].view());
      tape.rewind(start);
    }
    return {constant(tape, View<const T, 3, Device>(keys, extents)),
            constant(tape, View<const T, 3, Device>(keys + size, extents))};
  }

  KeysAndValues project_text(const Var<T, 3, Device>& text) {
    const std::array parts = {to_k.weights_on(text.tape()), to_v.weights_on(text.tape())};
    if (can_project_together(parts)) return projections(text, parts);
    return {to_k(text), to_v(text)};
  }
};

}  // namespace lpo::inline LPO_ABI
