// SPDX-License-Identifier: MIT
// AxisList: some axes of a statement's loop nest, and where its operands stand at a flat position over them.
#pragma once

#include <algorithm>
#include <cstdint>

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/tensor/iteration.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Axes in the order of the loop nest, the innermost first.
template <int Operands>
struct AxisList {
  int rank = 0;
  unsigned extent[max_rank] = {};
  FastDivisor divisor[max_rank];
  int stride[Operands][max_rank] = {};

  AxisList() = default;

  /// The axes of `space` whose bit is set; the operands are number `first` and those after it.
  AxisList(const IterationSpace& space, unsigned axes, int first = 0) {
    index_t reach = 1;
    for (int axis = space.rank - 1; axis >= 0; --axis) {
      if ((axes >> axis & 1u) == 0) continue;
      extent[rank] = static_cast<unsigned>(space.extent[axis]);
      divisor[rank] = FastDivisor(std::max(1u, extent[rank]));
      for (int k = 0; k < Operands; ++k) {
        const index_t step = space.stride[first + k][axis];
        reach = std::max(reach, (space.extent[axis] - 1) * std::abs(step));
        stride[k][rank] = static_cast<int>(step);
      }
      ++rank;
    }
    if (space.size() > limit || reach > limit)
      throw ShapeError(message("[statement] ", space.size(), " elements; one statement of the CUDA backend covers at most 2^31 "
                               "- 1, split the tensor along its outermost axis"));
  }

  index_t count() const {
    index_t product = 1;
    for (int axis = 0; axis < rank; ++axis) product *= extent[axis];
    return product;
  }

  /// Whether an operand has one offset at all positions.
  bool stands_still(int operand) const {
    return std::all_of(stride[operand], stride[operand] + rank, [](int step) { return step == 0; });
  }

  /// Adds every operand's offset at `position` to `offset`.
  __device__ __forceinline__ void locate(unsigned position, int* offset) const {
#pragma unroll
    for (int axis = 0; axis < max_rank; ++axis) {
      if (axis >= rank) break;
      unsigned at = position;
      if (axis + 1 < rank) {
        const unsigned quotient = divisor[axis].quotient(position);
        at = position - quotient * extent[axis];
        position = quotient;
      }
#pragma unroll
      for (int k = 0; k < Operands; ++k) offset[k] += static_cast<int>(at) * stride[k][axis];
    }
  }

 private:
  static constexpr index_t limit = (index_t{1} << 31) - 1;
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
