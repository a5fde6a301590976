// SPDX-License-Identifier: MIT
// Extents: the sizes (or strides) of a tensor's axes, a plain array that host and device code share.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

using index_t = std::int64_t;

/// `Rank` sizes, outermost first. An aggregate: `Extents<4>{n, h, w, c}`.
template <int Rank>
struct Extents {
  static_assert(Rank >= 1 && Rank <= 6, "lpo Extents: rank must be 1 to 6");
  index_t values[Rank];

  LPO_HOST_DEVICE constexpr index_t& operator[](int axis) { return values[axis]; }
  LPO_HOST_DEVICE constexpr index_t operator[](int axis) const { return values[axis]; }
  LPO_HOST_DEVICE constexpr index_t* begin() { return values; }
  LPO_HOST_DEVICE constexpr index_t* end() { return values + Rank; }
  LPO_HOST_DEVICE constexpr const index_t* begin() const { return values; }
  LPO_HOST_DEVICE constexpr const index_t* end() const { return values + Rank; }

  /// Number of elements.
  LPO_HOST_DEVICE constexpr index_t size() const {
    index_t product = 1;
    for (int axis = 0; axis < Rank; ++axis) product *= values[axis];
    return product;
  }

  LPO_HOST_DEVICE friend constexpr bool operator==(const Extents& a, const Extents& b) {
    for (int axis = 0; axis < Rank; ++axis)
      if (a.values[axis] != b.values[axis]) return false;
    return true;
  }
};

template <class... Sizes>
Extents(Sizes...) -> Extents<static_cast<int>(sizeof...(Sizes))>;

/// Strides, in elements, of a dense row-major tensor.
template <int Rank>
LPO_HOST_DEVICE constexpr Extents<Rank> dense_strides(const Extents<Rank>& extents) {
  Extents<Rank> strides{};
  index_t step = 1;
  for (int axis = Rank - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= extents[axis];
  }
  return strides;
}

namespace detail {

LPO_COLD inline std::string extents_text(const index_t* values, int rank) {
  std::string text = "[";
  for (int axis = 0; axis < rank; ++axis) {
    if (axis != 0) text += ", ";
    text += std::to_string(values[axis]);
  }
  return text + "]";
}

}  // namespace detail

/// "[1, 64, 64, 320]"
template <int Rank>
std::string to_string(const Extents<Rank>& extents) {
  return detail::extents_text(extents.values, Rank);
}

}  // namespace lpo::inline LPO_ABI
