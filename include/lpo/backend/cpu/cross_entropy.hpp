// SPDX-License-Identifier: MIT
// Cross-entropy on the CPU: rows over threads; a batch loss has few rows, so scalar doubles are fast enough.
#pragma once

#include <cmath>

#include <lpo/kernel/cross_entropy.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct CrossEntropy<Cpu> {
  template <class T>
  static void forward(Context<Cpu>& context, index_t rows, index_t classes, const T* logits, const std::int32_t* target,
                      T* loss) {
    context.executor().parallel_for(rows, 16, [&](index_t begin, index_t end) {
      for (index_t r = begin; r < end; ++r) {
        const T* z = logits + r * classes;
        loss[r] = static_cast<T>(static_cast<compute_t<T>>(log_sum_exp(z, classes) - number(z[target[r]])));
      }
    });
  }

  template <class T>
  static void backward(Context<Cpu>& context, index_t rows, index_t classes, const T* logits, const std::int32_t* target,
                       const T* dloss, T* dlogits, bool accumulate) {
    context.executor().parallel_for(rows, 16, [&](index_t begin, index_t end) {
      for (index_t r = begin; r < end; ++r) {
        const T* z = logits + r * classes;
        T* dz = dlogits + r * classes;
        const double lse = log_sum_exp(z, classes);
        for (index_t j = 0; j < classes; ++j) {
          const double g = number(dloss[r]) * (std::exp(number(z[j]) - lse) - (j == target[r] ? 1.0 : 0.0));
          dz[j] = static_cast<T>(static_cast<compute_t<T>>(accumulate ? number(dz[j]) + g : g));
        }
      }
    });
  }

 private:
  template <class T>
  static double number(T value) {
    return static_cast<double>(static_cast<compute_t<T>>(value));
  }

  template <class T>
  static double log_sum_exp(const T* z, index_t classes) {
    double largest = number(z[0]);
    for (index_t j = 1; j < classes; ++j) largest = std::fmax(largest, number(z[j]));
    double total = 0;
    for (index_t j = 0; j < classes; ++j) total += std::exp(number(z[j]) - largest);
    return largest + std::log(total);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
