// SPDX-License-Identifier: MIT
// View: a pointer with extents and strides, trivially copyable; all that a kernel sees of a tensor.
#pragma once

#include <type_traits>

#include <lpo/base/device.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

/// Non-owning, possibly strided window on memory of `Device`. Strides count elements.
template <class T, int Rank, class Device>
struct View {
  using lpo_operand = void;
  using value_type = std::remove_const_t<T>;
  using device = Device;
  static constexpr int rank = Rank;

  T* data = nullptr;
  Extents<Rank> extents{};
  Extents<Rank> strides{};

  View() = default;
  LPO_HOST_DEVICE View(T* pointer, const Extents<Rank>& sizes)
      : data(pointer), extents(sizes), strides(dense_strides(sizes)) {}
  LPO_HOST_DEVICE View(T* pointer, const Extents<Rank>& sizes, const Extents<Rank>& steps)
      : data(pointer), extents(sizes), strides(steps) {}

  /// A view is also a view of constant elements.
  template <class U>
    requires(std::is_same_v<const U, T>)
  LPO_HOST_DEVICE View(const View<U, Rank, Device>& other)
      : data(other.data), extents(other.extents), strides(other.strides) {}

  LPO_HOST_DEVICE index_t size() const { return extents.size(); }
  LPO_HOST_DEVICE index_t extent(int axis) const { return extents[axis]; }

  /// Element access for host code and tests; no bounds check.
  template <class... Index>
  LPO_HOST_DEVICE T& operator()(Index... index) const {
    static_assert(sizeof...(Index) == Rank, "lpo View: one index per axis");
    const index_t position[] = {static_cast<index_t>(index)...};
    index_t offset = 0;
    for (int axis = 0; axis < Rank; ++axis) offset += position[axis] * strides[axis];
    return data[offset];
  }

  /// True when elements follow each other in row-major order without gaps.
  LPO_HOST_DEVICE bool dense() const {
    index_t step = 1;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      if (extents[axis] != 1 && strides[axis] != step) return false;
      step *= extents[axis];
    }
    return true;
  }

  /// Elements [begin, end) of one axis; a window, no copy.
  View slice(int axis, index_t begin, index_t end) const {
    if (axis < 0 || axis >= Rank || begin < 0 || end < begin || end > extents[axis])
      throw ShapeError(message("[slice] range [", begin, ", ", end, ") does not fit axis ", axis, " of ", to_string(extents)));
    View window = *this;
    window.data += begin * strides[axis];
    window.extents[axis] = end - begin;
    return window;
  }

  /// Axes reordered: `permute({0, 3, 1, 2})` reads channels-last memory as channels-first.
  View permute(const int (&order)[Rank]) const {
    View turned = *this;
    unsigned seen = 0;
    for (int axis = 0; axis < Rank; ++axis) {
      if (order[axis] < 0 || order[axis] >= Rank || (seen >> order[axis] & 1u))
        throw ShapeError(message("[permute] the order must name each of ", Rank, " axes once"));
      seen |= 1u << order[axis];
      turned.extents[axis] = extents[order[axis]];
      turned.strides[axis] = strides[order[axis]];
    }
    return turned;
  }

  /// The same elements under other extents. The view must be dense; copy it first when it is not.
  template <int NewRank>
  View<T, NewRank, Device> reshape(const Extents<NewRank>& sizes) const {
    if (sizes.size() != size())
      throw ShapeError(message("[reshape] ", to_string(extents), " has ", size(), " elements, ", to_string(sizes), " has ",
                               sizes.size()));
    if (!dense()) throw ShapeError(message("[reshape] ", to_string(extents), " is strided; copy it first, a Var with contiguous(x)"));
    return {data, sizes};
  }
};

namespace detail {

/// Throws unless both extents are equal; the message names the operation and both operands.
template <int Rank>
void expect_same(const char* operation, const char* a_name, const Extents<Rank>& a, const char* b_name,
                 const Extents<Rank>& b) {
  if (!(a == b))
    throw ShapeError(message("[", operation, "] ", a_name, " ", to_string(a), " and ", b_name, " ", to_string(b),
                             " must have the same extents"));
}

}  // namespace detail

}  // namespace lpo::inline LPO_ABI
