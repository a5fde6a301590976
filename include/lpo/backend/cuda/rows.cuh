// SPDX-License-Identifier: MIT
// Rows of CUDA kernels that give a warp to each: the row of a warp, its lanes' columns, and a row in registers.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

inline constexpr int row_warps = 8;

/// The row of this warp, or `rows` and more for warps without one.
__device__ __forceinline__ index_t row_of_warp() {
  return static_cast<index_t>(blockIdx.x) * row_warps + threadIdx.x / 32;
}

/// A launch with a warp for each row.
inline LaunchShape row_per_warp(index_t rows) { return {blocks_for(rows, row_warps), 32 * row_warps}; }

/// Calls `body(column)` for this lane's vectors of a row of c numbers.
template <int Vector, class Body>
__device__ __forceinline__ void for_lane_columns(index_t c, Body&& body) {
  for (index_t column = static_cast<index_t>(threadIdx.x % 32) * Vector; column < c; column += 32 * Vector) body(column);
}

/// This lane's vectors of a row: in registers where Held of them cover it; with Held = 0 every walk reads them again.
template <int Vector, int Held, class T>
class LaneRow {
 public:
  LaneRow() = default;
  __device__ __forceinline__ LaneRow(const T* row, index_t c) { fetch(row, c); }

  __device__ __forceinline__ void fetch(const T* row, index_t c) {
    row_ = row, c_ = c;
#pragma unroll
    for (int i = 0; i < Held; ++i)
      if (column(i) < c) held_[i].fetch(row + column(i));
  }

  /// Where vector number i of those that are held begins.
  static __device__ __forceinline__ int column(int i) { return (i * 32 + static_cast<int>(threadIdx.x) % 32) * Vector; }

  /// The numbers of vector number i of those that are held.
  __device__ __forceinline__ void numbers(int i, compute_t<T> (&values)[Vector]) const { held_[i].widen_to(values); }

  /// Calls `body(column, values)` for the vectors.
  template <class Body>
  __device__ __forceinline__ void walk(Body&& body) const {
    compute_t<T> values[Vector];
    if constexpr (Held == 0) {
      for_lane_columns<Vector>(c_, [&](index_t at) {
        load_numbers<Vector>(row_ + at, values);
        body(at, values);
      });
    } else {
#pragma unroll
      for (int i = 0; i < Held; ++i)
        if (column(i) < c_) {
          numbers(i, values);
          body(column(i), values);
        }
    }
  }

 private:
  const T* row_ = nullptr;
  index_t c_ = 0;
  StoredNumbers<T, Vector> held_[Held > 0 ? Held : 1];
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
