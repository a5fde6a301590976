// SPDX-License-Identifier: MIT
// IterationSpace: the merged loop nest of a fused statement — broadcast strides per operand, adjacent axes collapsed.
#pragma once

#include <cstdlib>

#include <lpo/tensor/expression.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

inline constexpr int max_leaves = 24;

/// Operand 0 is the output, operand 1 + i is leaf i. The last axis is the inner loop.
struct IterationSpace {
  int rank = 1;
  int operands = 1;
  index_t extent[max_rank] = {1, 1, 1, 1, 1, 1};
  index_t stride[max_leaves + 1][max_rank] = {};
  bool unit_inner = true;  ///< every operand steps by 1 (or 0 for splat leaves) in the inner loop: packs apply

  index_t size() const {
    index_t product = 1;
    for (int axis = 0; axis < rank; ++axis) product *= extent[axis];
    return product;
  }
  index_t inner() const { return extent[rank - 1]; }
  index_t rows() const { return inner() == 0 ? 0 : size() / inner(); }
  /// True when the operand is repeated along an axis (or, for an empty result, would be): its gradient is a sum.
  bool reduced(int operand) const {
    for (int axis = 0; axis < rank; ++axis)
      if (extent[axis] != 1 && stride[operand][axis] == 0) return true;
    return false;
  }
};

/// Lays out a statement with result `extents` / `strides` over `leaves`; `splat[i]` tells which leaves are splat by type.
inline IterationSpace make_iteration_space(int rank, const index_t* extents, const index_t* strides, const Leaf* leaves,
                                           const bool* splat, int leaf_count) {
  IterationSpace raw;
  raw.rank = rank;
  raw.operands = leaf_count + 1;
  for (int axis = 0; axis < rank; ++axis) {
    raw.extent[axis] = extents[axis];
    raw.stride[0][axis] = strides[axis];
    for (int i = 0; i < leaf_count; ++i) {
      const int own = axis - (rank - leaves[i].rank);
      raw.stride[i + 1][axis] = own < 0 || leaves[i].extents[own] == 1 ? 0 : leaves[i].strides[own];
    }
  }
  IterationSpace space;
  space.operands = raw.operands;
  space.rank = 0;
  for (int axis = rank - 1; axis >= 0; --axis) {  // built from the innermost axis outwards, reversed below
    if (raw.extent[axis] == 1) continue;
    const int last = space.rank - 1;
    bool merges = space.rank > 0;
    for (int k = 0; merges && k < raw.operands; ++k)
      merges = raw.stride[k][axis] == space.stride[k][last] * space.extent[last];
    if (merges) {
      space.extent[last] *= raw.extent[axis];
      continue;
    }
    space.extent[space.rank] = raw.extent[axis];
    for (int k = 0; k < raw.operands; ++k) space.stride[k][space.rank] = raw.stride[k][axis];
    ++space.rank;
  }
  if (space.rank == 0) {
    space.rank = 1;
    space.extent[0] = 1;
    for (int k = 0; k < raw.operands; ++k) space.stride[k][0] = 1;
  }
  for (int i = 0, j = space.rank - 1; i < j; ++i, --j) {
    std::swap(space.extent[i], space.extent[j]);
    for (int k = 0; k < raw.operands; ++k) std::swap(space.stride[k][i], space.stride[k][j]);
  }
  for (int k = 0; k < raw.operands; ++k) {
    const index_t step = space.stride[k][space.rank - 1];
    const index_t wanted = k > 0 && splat[k - 1] ? 0 : 1;
    if (step != wanted) space.unit_inner = false;
  }
  return space;
}

/// Whether two windows with the same strides, `distance` elements apart, share an element. Exact for windows of dense
/// tensors, where the inner axes span less than one step of the next axis out; otherwise it may say yes too often.
inline bool windows_meet(const IterationSpace& space, const index_t* stride, int axis, index_t distance) {
  if (axis == space.rank) return distance == 0;
  index_t span = 0;  // how far the inner axes reach
  for (int inner = axis + 1; inner < space.rank; ++inner) span += (space.extent[inner] - 1) * stride[inner];
  const index_t step = stride[axis], extent = space.extent[axis];
  if (step <= span) return std::abs(distance) <= span + (extent - 1) * step;
  const index_t low = distance / step - (distance % step < 0 ? 1 : 0);
  for (index_t steps = low; steps <= low + 1; ++steps)
    if (std::abs(steps) < extent && windows_meet(space, stride, axis + 1, distance - steps * step)) return true;
  return false;
}

/// Whether elements of the gradients of leaves a and b coincide at different positions of the loop nest, as for two shifted
/// slices of one value: then rows depend on each other and one thread must walk them all.
inline bool gradients_cross(const IterationSpace& space, int a, const void* a_data, index_t a_bytes, int b,
                            const void* b_data, index_t b_bytes) {
  const index_t *sa = space.stride[a + 1], *sb = space.stride[b + 1];
  const auto* pa = static_cast<const char*>(a_data);
  const auto* pb = static_cast<const char*>(b_data);
  index_t reach_a = 1, reach_b = 1;
  bool same_strides = a_bytes == b_bytes;
  for (int axis = 0; axis < space.rank; ++axis) {
    reach_a += (space.extent[axis] - 1) * sa[axis];
    reach_b += (space.extent[axis] - 1) * sb[axis];
    same_strides = same_strides && sa[axis] == sb[axis];
  }
  if (pa + reach_a * a_bytes <= pb || pb + reach_b * b_bytes <= pa) return false;
  if (!same_strides) return true;
  if (pa == pb) return false;
  return windows_meet(space, sa, 0, (pb - pa) / a_bytes);
}

/// Walks the outer axes; `offset[k]` is where operand k's current row starts.
class OuterCursor {
 public:
  OuterCursor(const IterationSpace& space, index_t row) : space_(space) {
    for (int axis = space.rank - 2; axis >= 0; --axis) {
      index_[axis] = row % space.extent[axis];
      row /= space.extent[axis];
      for (int k = 0; k < space.operands; ++k) offset[k] += index_[axis] * space.stride[k][axis];
    }
  }

  void next() {
    for (int axis = space_.rank - 2; axis >= 0; --axis) {
      for (int k = 0; k < space_.operands; ++k) offset[k] += space_.stride[k][axis];
      if (++index_[axis] < space_.extent[axis]) return;
      for (int k = 0; k < space_.operands; ++k) offset[k] -= space_.stride[k][axis] * space_.extent[axis];
      index_[axis] = 0;
    }
  }

  index_t offset[max_leaves + 1] = {};

 private:
  const IterationSpace& space_;
  index_t index_[max_rank] = {};
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
