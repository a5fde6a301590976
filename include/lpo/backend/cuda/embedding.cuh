// SPDX-License-Identifier: MIT
// Embedding lookup of CUDA devices and its gradient, summed in index order.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/embedding.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

template <class T>
__global__ void __launch_bounds__(256) embedding_kernel(index_t width, const std::int32_t* ids, const T* table, T* y) {
  const index_t from = static_cast<index_t>(ids[blockIdx.x]) * width, to = static_cast<index_t>(blockIdx.x) * width;
  for (index_t i = threadIdx.x; i < width; i += 256) y[to + i] = table[from + i];
}

/// The block of an id's first occurrence adds up all of them, in index order; the others leave.
template <class T>
__global__ void __launch_bounds__(256) embedding_backward_kernel(index_t count, index_t width, const std::int32_t* ids,
                                                                 const T* dy, T* dtable) {
  const index_t own = blockIdx.x;
  const std::int32_t id = ids[own];
  int earlier = 0;
  for (index_t i = threadIdx.x; i < own; i += 256) earlier |= static_cast<int>(ids[i] == id);
  if (__syncthreads_or(earlier)) return;
  for (index_t column = threadIdx.x; column < width; column += 256) {
    T& element = dtable[static_cast<index_t>(id) * width + column];
    compute_t<T> sum = widen(element);
    for (index_t i = own; i < count; ++i)
      if (ids[i] == id) sum += widen(dy[i * width + column]);
    element = narrow<T>(sum);
  }
}

}  // namespace detail

namespace kernel {

/// `ids` lie in device memory.
template <>
struct Embedding<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, index_t count, index_t width, const std::int32_t* ids, const T* table, T* y) {
    if (count <= 0 || width <= 0) return;
    context.launch("embedding_kernel", {static_cast<unsigned>(count), 256}, detail::embedding_kernel<T>, width, ids, table, y);
  }
  template <class T>
  static void backward(Context<Cuda>& context, index_t count, index_t width, index_t vocabulary, const std::int32_t* ids,
                       const T* dy, T* dtable, bool accumulate) {
    if (!accumulate) context.fill_zero(dtable, static_cast<std::size_t>(vocabulary * width) * sizeof(T));
    if (count <= 0 || width <= 0) return;
    context.launch("embedding_backward_kernel", {static_cast<unsigned>(count), 256}, detail::embedding_backward_kernel<T>, count,
                   width, ids, dy, dtable);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
