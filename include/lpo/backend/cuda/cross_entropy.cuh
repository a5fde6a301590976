// SPDX-License-Identifier: MIT
// Cross-entropy of CUDA devices: a block per row.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/cross_entropy.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// ln sum exp of a row, the same in every thread.
template <class T>
__device__ compute_t<T> row_log_sum_exp(const T* z, index_t classes, compute_t<T>* shared) {
  using Number = compute_t<T>;
  Number largest = widen(z[0]);
  for (index_t j = threadIdx.x; j < classes; j += 128) largest = max(largest, widen(z[j]));
  largest = block_max<128>(largest, shared);
  Number sum{};
  for (index_t j = threadIdx.x; j < classes; j += 128) sum += ::exp(widen(z[j]) - largest);
  return largest + ::log(block_sum<128>(sum, shared));
}

template <class T>
__global__ void __launch_bounds__(128)
    cross_entropy_kernel(index_t classes, const T* logits, const std::int32_t* target, T* loss) {
  __shared__ compute_t<T> shared[4];
  const T* z = logits + blockIdx.x * classes;
  const compute_t<T> total = row_log_sum_exp(z, classes, shared);
  if (threadIdx.x == 0) loss[blockIdx.x] = narrow<T>(total - widen(z[target[blockIdx.x]]));
}

template <class T>
__global__ void __launch_bounds__(128) cross_entropy_backward_kernel(index_t classes, const T* logits, const std::int32_t* target,
                                                                     const T* dloss, T* dlogits, bool accumulate) {
  using Number = compute_t<T>;
  __shared__ Number shared[4];
  const T* z = logits + blockIdx.x * classes;
  T* dz = dlogits + blockIdx.x * classes;
  const Number total = row_log_sum_exp(z, classes, shared), scale = widen(dloss[blockIdx.x]);
  for (index_t j = threadIdx.x; j < classes; j += 128) {
    Number gradient = scale * (::exp(widen(z[j]) - total) - (j == target[blockIdx.x] ? Number{1} : Number{}));
    if (accumulate) gradient += widen(dz[j]);
    dz[j] = narrow<T>(gradient);
  }
}

}  // namespace detail

namespace kernel {

/// `target` lies in device memory.
template <>
struct CrossEntropy<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, index_t rows, index_t classes, const T* logits, const std::int32_t* target, T* loss) {
    if (rows <= 0) return;
    context.launch("cross_entropy_kernel", {static_cast<unsigned>(rows), 128}, detail::cross_entropy_kernel<T>, classes, logits,
                   target, loss);
  }
  template <class T>
  static void backward(Context<Cuda>& context, index_t rows, index_t classes, const T* logits, const std::int32_t* target,
                       const T* dloss, T* dlogits, bool accumulate) {
    if (rows <= 0) return;
    context.launch("cross_entropy_backward_kernel", {static_cast<unsigned>(rows), 128}, detail::cross_entropy_backward_kernel<T>,
                   classes, logits, target, dloss, dlogits, accumulate);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
