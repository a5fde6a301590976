// SPDX-License-Identifier: MIT
// One AdamW step of the CPU: a single pass in packs over parameters, gradients and both moments.
#pragma once

#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/kernel/adamw.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct AdamW<Cpu> {
  template <class T, class Gradient>
  static void step(Context<Cpu>& context, const AdamWParams& p, index_t count, T* parameter, const Gradient* gradient,
                   compute_t<T>* m, compute_t<T>* v) {
    using V = detail::lanes_t<T>;
    using S = compute_t<T>;
    const S beta1 = p.beta1, beta2 = p.beta2, rest1 = S(1) - beta1, rest2 = S(1) - beta2;
    const S scale = p.gradient_scale, rate = p.learning_rate, decay = p.weight_decay, epsilon = p.epsilon;
    const S unbias1 = S(1) / S(p.bias1), unbias2 = S(1) / S(p.bias2);
    context.executor().parallel_for(count, 16384, [&](index_t begin, index_t end) {
      detail::for_lanes<V>(begin, end, [&](index_t at, auto lanes) {
        const V g = lanes.load(gradient + at) * scale;
        const V first = lanes.load(m + at) * beta1 + g * rest1;
        const V second = lanes.load(v + at) * beta2 + g * g * rest2;
        const V value = lanes.load(parameter + at);
        const V direction = first * unbias1 / (detail::square_root(second * unbias2) + epsilon);
        lanes.store(m + at, first);
        lanes.store(v + at, second);
        lanes.store(parameter + at, value - (direction + value * decay) * rate);
      });
    });
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
