// SPDX-License-Identifier: MIT
// The two-dimensional copy of CUDA devices.
#pragma once

#include <lpo/backend/cuda/statement_axes.cuh>
#include <lpo/kernel/copy.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

// target[r, i] (+)= source[r, i]. A thread moves Vector numbers; rows may lie any distance apart.

template <class T>
struct CopyRowsArguments {
  unsigned count;     ///< rows * width / Vector
  FastDivisor width;  ///< width / Vector
  const T* source;
  index_t source_row;
  T* target;
  index_t target_row;
};

template <int Vector, bool Accumulate, class T>
__global__ void __launch_bounds__(256) copy_rows_kernel(const __grid_constant__ CopyRowsArguments<T> a) {
  const unsigned at = blockIdx.x * 256u + threadIdx.x;
  if (at >= a.count) return;
  const unsigned row = a.width.quotient(at), column = (at - row * a.width.divisor) * Vector;
  const T* from = a.source + row * a.source_row + column;
  T* to = a.target + row * a.target_row + column;
  if constexpr (Accumulate) {
    compute_t<T> value[Vector], old[Vector];
    load_numbers<Vector>(from, value);
    load_numbers<Vector>(to, old);
#pragma unroll
    for (int i = 0; i < Vector; ++i) value[i] += old[i];
    store_numbers<Vector>(to, value);
  } else {
    *reinterpret_cast<NumberVector<T, Vector>*>(to) = *reinterpret_cast<const NumberVector<T, Vector>*>(from);
  }
}

template <int Vector, class T>
void launch_copy_rows(Context<Cuda>& context, index_t rows, index_t width, const T* source, index_t source_row, T* target,
                      index_t target_row, bool accumulate) {
  const index_t groups = width / Vector;
  const index_t slab = std::max<index_t>(1, (index_t{1} << 30) / groups);  // rows whose positions fit 31 bits
  for (index_t first = 0; first < rows; first += slab) {
    const index_t count = std::min(slab, rows - first) * groups;
    const CopyRowsArguments<T> a{static_cast<unsigned>(count), FastDivisor(static_cast<unsigned>(groups)),
                                 source + first * source_row, source_row, target + first * target_row, target_row};
    const auto kernel = accumulate ? copy_rows_kernel<Vector, true, T> : copy_rows_kernel<Vector, false, T>;
    context.launch("copy_rows_kernel", {blocks_for(count, 256), 256}, kernel, a);
  }
}

}  // namespace detail

namespace kernel {

template <>
struct CopyRows<Cuda> {
  template <class T>
  static void run(Context<Cuda>& context, index_t rows, index_t width, const T* source, index_t source_row, T* target,
                  index_t target_row, bool accumulate) {
    if (rows <= 0 || width <= 0) return;
    constexpr int vector = static_cast<int>(16 / sizeof(T));
    if (detail::common_alignment(source, target) == 16 && width % vector == 0 && source_row % vector == 0 && target_row % vector == 0)
      detail::launch_copy_rows<vector>(context, rows, width, source, source_row, target, target_row, accumulate);
    else
      detail::launch_copy_rows<1>(context, rows, width, source, source_row, target, target_row, accumulate);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
