// SPDX-License-Identifier: MIT
// Downsample2D and Upsample2D: the layers that halve and double a feature map.
#pragma once

#include <lpo/autograd/checkpoint.hpp>
#include <lpo/autograd/resample.hpp>
#include <lpo/nn/conv2d.hpp>

namespace lpo::inline LPO_ABI {

/// 3x3 convolution of stride 2. UNets pad all sides by 1; the autoencoder pads bottom and right only (`Asymmetric`).
template <int Channels, bool Asymmetric, class T, class Device>
struct Downsample2D {
  Conv2d<Channels, Channels, 3, T, Device> conv;

  Var<T, 4, Device, Channels> operator()(const Var<T, 4, Device, Channels>& x) {
    return conv(x, Asymmetric ? Conv2dOptions{2, 0, 1, 0, 1} : Conv2dOptions::same(3, 2));
  }
  void visit(ParameterVisitor<T, Device>& v) { v("conv", conv); }
};

/// Nearest upsampling to `out_h` x `out_w` (twice the input, or the size of the skip it must match), then a 3x3 convolution.
template <int Channels, class T, class Device>
struct Upsample2D {
  Conv2d<Channels, Channels, 3, T, Device> conv;

  Var<T, 4, Device, Channels> operator()(const Var<T, 4, Device, Channels>& x, index_t out_h, index_t out_w) {
    const Var<T, 4, Device> plain = x;
    return scoped(x.tape(), [&] { return conv(upsample_nearest(plain, out_h, out_w)); });
  }
  void visit(ParameterVisitor<T, Device>& v) { v("conv", conv); }
};

}  // namespace lpo::inline LPO_ABI
