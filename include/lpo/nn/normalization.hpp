// SPDX-License-Identifier: MIT
// GroupNorm and LayerNorm layers.
#pragma once

#include <lpo/autograd/normalization.hpp>
#include <lpo/nn/linear.hpp>

namespace lpo::inline LPO_ABI {

/// x [n, h, w, Channels], normalised over (h, w, Channels / Groups), then scaled and shifted; `Silu` fuses the activation.
template <int Channels, int Groups, class T, class Device, bool Silu = false>
struct GroupNorm {
  static_assert(Channels % Groups == 0, "lpo GroupNorm: the channels must be a multiple of the groups");
  Parameter<T, 1, Device> weight{Extents<1>{Channels}, {Initialization::Kind::ones, 1.0f}};
  Parameter<T, 1, Device> bias{Extents<1>{Channels}, {Initialization::Kind::zeros, 0.0f}};

  template <int C>
  Var<T, 4, Device, Channels> operator()(const Var<T, 4, Device, C>& x, float epsilon) {
    static_assert(C == Channels || C == dynamic, "lpo GroupNorm: input channels differ from the layer's");
    auto& tape = x.tape();
    const Var<T, 4, Device> plain = x;
    return group_norm(plain, weight.on(tape), bias.on(tape), Groups, epsilon, Silu).template with_channels<Channels>();
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("weight", weight);
    v("bias", bias);
  }
};

/// x [..., Channels], normalised over the innermost axis.
template <int Channels, class T, class Device>
struct LayerNorm {
  Parameter<T, 1, Device> weight{Extents<1>{Channels}, {Initialization::Kind::ones, 1.0f}};
  Parameter<T, 1, Device> bias{Extents<1>{Channels}, {Initialization::Kind::zeros, 0.0f}};
  float epsilon = 1e-5f;

  template <int Rank, int C>
  Var<T, Rank, Device, Channels> operator()(const Var<T, Rank, Device, C>& x) {
    static_assert(C == Channels || C == dynamic, "lpo LayerNorm: input width differs from the layer's");
    auto& tape = x.tape();
    const Var<T, Rank, Device> plain = x;
    return detail::with_rows_of<Channels>(x, layer_norm(detail::as_rows(plain), weight.on(tape), bias.on(tape), epsilon));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("weight", weight);
    v("bias", bias);
  }
};

}  // namespace lpo::inline LPO_ABI
