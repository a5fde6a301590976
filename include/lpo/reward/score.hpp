// SPDX-License-Identifier: MIT
// The CLIP-like score of a latent reward model: exp(logit_scale) times the cosine of visual and text features.
#pragma once

#include <lpo/autograd/reduce.hpp>

namespace lpo::inline LPO_ABI {

/// Rows of x [n, width] divided by their L2 norm (without epsilon, as in the released code).
template <class T, class Device>
Var<T, 2, Device> l2_normalize(const Var<T, 2, Device>& x) {
  const Var<T, 2, Device> squares = square(x);
  const auto norms = row_sums(squares).reshape(Extents<2>{x.extent(0), 1});
  return Var<T, 2, Device>(x / sqrt(bcast_last(norms)));
}

namespace detail {

/// The same numbers in the type of the arithmetic.
template <class T, int Rank, class Device>
Var<compute_t<T>, Rank, Device> widened(const Var<T, Rank, Device>& x) {
  if constexpr (std::is_same_v<T, compute_t<T>>)
    return x;
  else
    return Var<compute_t<T>, Rank, Device>(1.0 * x);
}

}  // namespace detail

/// visual, text [n, width]; logit_scale [1] -> scores [n] = exp(logit_scale) * cos(text_i, visual_i). In float also for
/// 16-bit features: candidates of one step differ by less than the spacing of 16-bit scores.
template <class T, class Device>
Var<compute_t<T>, 1, Device> cosine_score(const Var<T, 2, Device>& visual, const Var<T, 2, Device>& text,
                                          const Var<T, 1, Device>& logit_scale) {
  using Number = compute_t<T>;
  detail::expect_same("cosine_score", "visual", visual.extents(), "text", text.extents());
  const Var<Number, 2, Device> product = l2_normalize(detail::widened(visual)) * l2_normalize(detail::widened(text));
  return Var<Number, 1, Device>(row_sums(product) * exp(bcast_last(logit_scale)));
}

}  // namespace lpo::inline LPO_ABI
