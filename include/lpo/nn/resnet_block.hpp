// SPDX-License-Identifier: MIT
// ResnetBlock2D: two normalised convolutions with a time-embedding shift between them, plus a shortcut.
#pragma once

#include <lpo/autograd/checkpoint.hpp>
#include <lpo/nn/conv2d.hpp>
#include <lpo/nn/normalization.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {
struct Nothing {};
}  // namespace detail

/// x [n, h, w, In] -> [n, h, w, Out]. `TimeWidth` = 0 leaves out the time embedding (the autoencoder's blocks).
/// Keys: norm1, conv1, time_emb_proj, norm2, conv2, conv_shortcut (when In != Out).
template <int In, int Out, int TimeWidth, int Groups, class T, class Device>
struct ResnetBlock2D {
  GroupNorm<In, Groups, T, Device, true> norm1;
  Conv2d<In, Out, 3, T, Device> conv1;
  [[no_unique_address]] std::conditional_t<(TimeWidth > 0), Linear<(TimeWidth > 0 ? TimeWidth : 1), Out, T, Device>, detail::Nothing>
      time_emb_proj;
  GroupNorm<Out, Groups, T, Device, true> norm2;
  Conv2d<Out, Out, 3, T, Device> conv2;
  [[no_unique_address]] std::conditional_t<(In != Out), Conv2d<In, Out, 1, T, Device>, detail::Nothing> conv_shortcut;

  /// `time` is silu(time embedding) [n, TimeWidth], computed once for all blocks; absent when TimeWidth is 0.
  template <int C>
  Var<T, 4, Device, Out> operator()(const Var<T, 4, Device, C>& x, const Var<T, 2, Device>& time, float epsilon) {
    static_assert(C == In || C == dynamic, "lpo ResnetBlock2D: input channels differ from the block's In");
    const Var<T, 4, Device> input = x;  // of dynamic width, so that the sentence above is the only one
    return scoped(x.tape(), [&] {
      auto h = conv1(norm1(input, epsilon));  // [n, h, w, Out]
      if constexpr (TimeWidth > 0) {
        const auto shift = time_emb_proj(time).reshape(Extents<4>{input.extent(0), 1, 1, Out});
        const Var<T, 4, Device, Out> shifted = h + shift;
        h = shifted;
      }
      h = conv2(norm2(h, epsilon));
      if constexpr (In != Out)
        return conv_shortcut(input, h);
      else
        return Var<T, 4, Device, Out>(input + h);
    });
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("norm1", norm1);
    v("conv1", conv1);
    if constexpr (TimeWidth > 0) v("time_emb_proj", time_emb_proj);
    v("norm2", norm2);
    v("conv2", conv2);
    if constexpr (In != Out) v("conv_shortcut", conv_shortcut);
  }
};

}  // namespace lpo::inline LPO_ABI
