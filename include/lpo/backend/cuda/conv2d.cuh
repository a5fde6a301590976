// SPDX-License-Identifier: MIT
// The 2-D convolution of CUDA devices and its gradients, and the choice between the ways to compute them.
#pragma once

#include <lpo/backend/cuda/conv2d_boxes.cuh>
#include <lpo/backend/cuda/conv2d_columns.cuh>
#include <lpo/backend/cuda/reduce.cuh>
#if defined(LPO_HAS_CUDNN)
#include <lpo/backend/cuda/cudnn_conv2d.cuh>
#endif

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct Conv2d<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, const Conv2dShape& s, const T* x, const T* weight, const T* bias, T* y) {
    const auto own = [&](const T* from, const T* weights, T* to) { own_forward(context, s, from, weights, bias, to); };
#if defined(LPO_HAS_CUDNN)
    if constexpr (!std::is_same_v<T, double>)
      if (!detail::is_pointwise(s) && detail::cudnn_conv2d_forward(context, s, x, weight, bias, y, own)) return;
#endif
    own(x, weight, y);
  }

  template <class T>
  static void backward_data(Context<Cuda>& context, const Conv2dShape& s, const T* dy, const T* weight, T* dx,
                            bool accumulate) {
    const auto own = [&](const T* weights, const T* from, T* to) {
      own_data(context, s, from, weights, to, accumulate);
    };
#if defined(LPO_HAS_CUDNN)
    if constexpr (!std::is_same_v<T, double>)
      if (!detail::is_pointwise(s) && detail::cudnn_conv2d_backward_data(context, s, dy, weight, dx, accumulate, own))
        return;
#endif
    own(weight, dy, dx);
  }

  template <class T>
  static void backward_weights(Context<Cuda>& context, const Conv2dShape& s, const T* x, const T* dy, T* dweight,
                               bool accumulate_weight, T* dbias, bool accumulate_bias) {
    if (dweight != nullptr) weight_gradient(context, s, x, dy, dweight, accumulate_weight);
    if (dbias != nullptr)
      Reduce<Cuda>::column_sums(context, s.n * s.out_h() * s.out_w(), s.o, dy, dbias, accumulate_bias);
  }

 private:
  template <class T>
  static void weight_gradient(Context<Cuda>& context, const Conv2dShape& s, const T* x, const T* dy, T* dweight,
                              bool accumulate) {
    const auto own = [&](const T* from, const T* back, T* to) { own_weights(context, s, from, back, to, accumulate); };
#if defined(LPO_HAS_CUDNN)
    if constexpr (!std::is_same_v<T, double>)
      if (!detail::is_pointwise(s) &&
          detail::cudnn_conv2d_backward_weights(context, s, x, dy, dweight, accumulate, own))
        return;
#endif
    own(x, dy, dweight);
  }

  // The kernels that the CUDA toolkit alone builds.

  template <class T>
  static void own_forward(Context<Cuda>& context, const Conv2dShape& s, const T* x, const T* weight, const T* bias,
                          T* y) {
    if constexpr (sizeof(T) == 2)
      if (!detail::is_pointwise(s) && detail::can_use_boxes<T>(s, x, weight, bias, y))
        return detail::conv2d_boxes_forward(context, s, x, weight, bias, y);
    detail::conv2d_columns_forward(context, s, x, weight, bias, y);
  }

  template <class T>
  static void own_data(Context<Cuda>& context, const Conv2dShape& s, const T* dy, const T* weight, T* dx,
                       bool accumulate) {
    if constexpr (sizeof(T) == 2)
      if (!detail::is_pointwise(s) && detail::can_use_boxes<T>(s, dy, weight, dx))
        return detail::conv2d_boxes_backward_data(context, s, dy, weight, dx, accumulate);
    detail::conv2d_columns_backward_data(context, s, dy, weight, dx, accumulate);
  }

  template <class T>
  static void own_weights(Context<Cuda>& context, const Conv2dShape& s, const T* x, const T* dy, T* dweight,
                          bool accumulate) {
    if constexpr (sizeof(T) == 2)
      if (!detail::is_pointwise(s) && detail::can_use_boxes<T>(s, x, dy, dweight))
        return detail::conv2d_boxes_backward_weights(context, s, x, dy, dweight, accumulate);
    detail::conv2d_columns_backward_weights(context, s, x, dy, dweight, accumulate);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
