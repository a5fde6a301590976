// SPDX-License-Identifier: MIT
// The CLIP-like score of a latent reward model: exp(logit_scale) times the cosine of visual and text features.
#pragma once

#include <lpo/autograd/reduce.hpp>

namespace lpo::inline LPO_ABI {

/// Rows of x [n, width] divided by their L2 norm (no epsilon, lpo-method A4).
template <class T, class Device>
Var<T, 2, Device> l2_normalize(const Var<T, 2, Device>& x) {
  const Var<T, 2, Device> squares = square(x);
  const auto norms = row_sums(squares).reshape(Extents<2>{x.extent(0), 1});
  return Var<T, 2, Device>(x / sqrt(bcast_last(norms)));
}

/// visual, text [n, width]; logit_scale [1] -> scores [n] = exp(logit_scale) * cos(text_i, visual_i).
template <class T, class Device>
Var<T, 1, Device> cosine_score(const Var<T, 2, Device>& visual, const Var<T, 2, Device>& text,
                               const Var<T, 1, Device>& logit_scale) {
  detail::expect_same("cosine_score", "visual", visual.extents(), "text", text.extents());
  const Var<T, 2, Device> product = l2_normalize(visual) * l2_normalize(text);
  return Var<T, 1, Device>(row_sums(product) * exp(bcast_last(logit_scale)));
}

}  // namespace lpo::inline LPO_ABI
