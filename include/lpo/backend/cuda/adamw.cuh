// SPDX-License-Identifier: MIT
// AdamW of CUDA devices: one kernel over a flat buffer, 16 bytes of parameters per thread.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/adamw.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

template <int Vector, class T, class Gradient>
__global__ void __launch_bounds__(256)
    adamw_kernel(const __grid_constant__ kernel::AdamWParams p, index_t groups, T* parameter, const Gradient* gradient,
                 compute_t<T>* m, compute_t<T>* v) {
  using Number = compute_t<T>;
  const index_t at = (static_cast<index_t>(blockIdx.x) * 256 + threadIdx.x) * Vector;
  if (at >= groups * Vector) return;
  Number value[Vector], g[Vector], first[Vector], second[Vector];
  load_numbers<Vector>(parameter + at, value);
  load_numbers<Vector>(gradient + at, g);
  load_numbers<Vector>(m + at, first);
  load_numbers<Vector>(v + at, second);
  const Number beta1 = p.beta1, beta2 = p.beta2, bias1 = p.bias1, bias2 = p.bias2, rate = p.learning_rate;
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    const Number scaled = g[i] * static_cast<Number>(p.gradient_scale);
    first[i] = beta1 * first[i] + (1 - beta1) * scaled;
    second[i] = beta2 * second[i] + (1 - beta2) * scaled * scaled;
    value[i] -= rate * (first[i] / bias1 / (::sqrt(second[i] / bias2) + static_cast<Number>(p.epsilon)) +
                        static_cast<Number>(p.weight_decay) * value[i]);
  }
  store_numbers<Vector>(parameter + at, value);
  store_numbers<Vector>(m + at, first);
  store_numbers<Vector>(v + at, second);
}

}  // namespace detail

namespace kernel {

template <>
struct AdamW<Cuda> {
  template <class T, class Gradient>
  static void step(Context<Cuda>& context, const AdamWParams& params, index_t count, T* parameter,
                   const Gradient* gradient, compute_t<T>* m, compute_t<T>* v) {
    if (count <= 0) return;
    constexpr int vector = static_cast<int>(16 / sizeof(T));
    const index_t groups = detail::common_alignment(parameter, gradient, m, v) == 16 ? count / vector : 0;
    const index_t done = groups * vector, rest = count - done;
    if (groups > 0)
      context.launch("adamw_kernel", {detail::blocks_for(groups, 256), 256}, detail::adamw_kernel<vector, T, Gradient>, params, groups,
                     parameter, gradient, m, v);
    if (rest > 0)
      context.launch("adamw_kernel", {detail::blocks_for(rest, 256), 256}, detail::adamw_kernel<1, T, Gradient>, params, rest,
                     parameter + done, gradient + done, m + done, v + done);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
