// SPDX-License-Identifier: MIT
// Conv2d: a convolution layer with static channel counts and kernel; 1x1 kernels run as matrix products.
#pragma once

#include <lpo/autograd/conv2d.hpp>
#include <lpo/nn/linear.hpp>

namespace lpo::inline LPO_ABI {

/// x [n, h, w, In] -> [n, out_h, out_w, Out]. Keys: weight ([Out, Kernel, Kernel, In] here, OIHW in files), bias [Out].
template <int In, int Out, int Kernel, class T, class Device>
struct Conv2d {
  static_assert(Kernel % 2 == 1, "lpo Conv2d: the kernel size must be odd");
  Parameter<T, 4, Device> weight{Extents<4>{Out, Kernel, Kernel, In}, detail::fan_in_uniform(In * Kernel * Kernel),
                                 WeightLayout::convolution};
  Parameter<T, 1, Device> bias{Extents<1>{Out}, detail::fan_in_uniform(In * Kernel * Kernel)};

  template <int C>
  Var<T, 4, Device, Out> operator()(const Var<T, 4, Device, C>& x, const Conv2dOptions& options = Conv2dOptions::same(Kernel)) {
    static_assert(C == In || C == dynamic, "lpo Conv2d: input channels differ from the layer's; check the block before it");
    auto& tape = x.tape();
    const Var<T, 4, Device> plain = x;
    if constexpr (Kernel == 1) {
      const auto w = weight.on(tape).reshape(Extents<2>{Out, In});
      return detail::with_rows_of<Out>(x, linear(detail::as_rows(plain), w, bias.on(tape)));
    } else {
      return conv2d(plain, weight.on(tape), bias.on(tape), options).template with_channels<Out>();
    }
  }

  /// A 1x1 convolution added to `addend` [n, h, w, Out].
  template <int C>
    requires(Kernel == 1)
  Var<T, 4, Device, Out> operator()(const Var<T, 4, Device, C>& x, const Var<T, 4, Device, Out>& addend) {
    static_assert(C == In || C == dynamic, "lpo Conv2d: input channels differ from the layer's; check the block before it");
    auto& tape = x.tape();
    const Var<T, 4, Device> plain = x, onto = addend;
    const auto w = weight.on(tape).reshape(Extents<2>{Out, In});
    return detail::with_rows_of<Out>(x, linear(detail::as_rows(plain), w, bias.on(tape), detail::as_rows(onto)));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("weight", weight);
    v("bias", bias);
  }
};

}  // namespace lpo::inline LPO_ABI
