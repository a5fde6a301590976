// SPDX-License-Identifier: MIT
// Reference attention and its gradient: plain loops over one row of probabilities at a time, sums in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <lpo/kernel/attention.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// Without keys `out` is zero. Backward takes the probabilities from `log_sum_exp` and ignores `out`: its row sums
/// sum(p dp) do not depend on the rounding of `out`.
template <>
struct Attention<Reference> {
  template <class T>
  static void forward(Context<Reference>&, const AttentionShape& shape, const T* q, const T* k, const T* v, T* out,
                      compute_t<T>* log_sum_exp) {
    std::vector<double> row(static_cast<std::size_t>(shape.keys));
    double* const probability = row.data();
    for (index_t b = 0; b < shape.batch; ++b)
      for (index_t head = 0; head < shape.heads; ++head) {
        const T* const q_head = q + b * shape.queries * shape.q_row + head * shape.width;
        const T* const k_head = k + b * shape.keys * shape.k_row + head * shape.width;
        const T* const v_head = v + b * shape.keys * shape.v_row + head * shape.width;
        T* const out_head = out + b * shape.queries * shape.out_row + head * shape.width;
        for (index_t i = 0; i < shape.queries; ++i) {
          const index_t seen = visible(shape, i);
          double highest = -HUGE_VAL, sum = 0.0;
          for (index_t j = 0; j < seen; ++j) {
            probability[j] = shape.scale * dot(q_head + i * shape.q_row, k_head + j * shape.k_row, shape.width);
            highest = std::fmax(highest, probability[j]);
          }
          for (index_t j = 0; j < seen; ++j) sum += probability[j] = std::exp(probability[j] - highest);
          for (index_t d = 0; d < shape.width; ++d) {
            double total = 0.0;
            for (index_t j = 0; j < seen; ++j)
              total += probability[j] * detail::load_lanes<double>(v_head + j * shape.v_row + d);
            detail::store_lanes(out_head + i * shape.out_row + d, seen > 0 ? total / sum : 0.0);
          }
          if (log_sum_exp)
            log_sum_exp[(b * shape.heads + head) * shape.queries + i] =
                static_cast<compute_t<T>>(highest + std::log(sum));
        }
      }
  }

  template <class T>
  static void backward(Context<Reference>&, const AttentionShape& shape, const T* q, const T* k, const T* v, const T*,
                       const compute_t<T>* log_sum_exp, const T* dout, T* dq, bool accumulate_q, T* dk,
                       bool accumulate_k, T* dv, bool accumulate_v) {
    const index_t width = shape.width;
    std::vector<double> space(static_cast<std::size_t>((2 * shape.keys + 1) * (width + 1)));
    double* const probability = space.data();
    double* const slope = probability + shape.keys;
    double* const q_sum = slope + shape.keys;
    double* const k_sum = q_sum + width;
    double* const v_sum = k_sum + shape.keys * width;
    for (index_t b = 0; b < shape.batch; ++b)
      for (index_t head = 0; head < shape.heads; ++head) {
        const index_t q_at = b * shape.queries * shape.q_row + head * width;
        const index_t k_at = b * shape.keys * shape.k_row + head * width;
        const index_t v_at = b * shape.keys * shape.v_row + head * width;
        const index_t out_at = b * shape.queries * shape.out_row + head * width;
        std::fill(k_sum, v_sum + shape.keys * width, 0.0);
        for (index_t i = 0; i < shape.queries; ++i) {
          const index_t seen = visible(shape, i);
          const T* const query = q + q_at + i * shape.q_row;
          const T* const gradient = dout + out_at + i * shape.out_row;
          const double level = static_cast<double>(log_sum_exp[(b * shape.heads + head) * shape.queries + i]);
          double delta = 0.0;
          for (index_t j = 0; j < seen; ++j) {
            probability[j] = std::exp(shape.scale * dot(query, k + k_at + j * shape.k_row, width) - level);
            slope[j] = dot(gradient, v + v_at + j * shape.v_row, width);
            delta += probability[j] * slope[j];
          }
          std::fill(q_sum, q_sum + width, 0.0);
          for (index_t j = 0; j < seen; ++j) {
            const double change = shape.scale * probability[j] * (slope[j] - delta);
            for (index_t d = 0; d < width; ++d) {
              q_sum[d] += change * detail::load_lanes<double>(k + k_at + j * shape.k_row + d);
              k_sum[j * width + d] += change * detail::load_lanes<double>(query + d);
              v_sum[j * width + d] += probability[j] * detail::load_lanes<double>(gradient + d);
            }
          }
          if (dq) put(q_sum, dq + q_at + i * shape.q_row, width, accumulate_q);
        }
        for (index_t j = 0; j < shape.keys; ++j) {
          if (dk) put(k_sum + j * width, dk + k_at + j * shape.k_row, width, accumulate_k);
          if (dv) put(v_sum + j * width, dv + v_at + j * shape.v_row, width, accumulate_v);
        }
      }
  }

 private:
  static index_t visible(const AttentionShape& shape, index_t i) {
    return shape.causal && i + 1 < shape.keys ? i + 1 : shape.keys;
  }
  template <class T>
  static double dot(const T* a, const T* b, index_t width) {
    double sum = 0.0;
    for (index_t d = 0; d < width; ++d) sum += detail::load_lanes<double>(a + d) * detail::load_lanes<double>(b + d);
    return sum;
  }
  template <class T>
  static void put(const double* sum, T* target, index_t width, bool accumulate) {
    for (index_t d = 0; d < width; ++d)
      detail::store_lanes(target + d, sum[d] + (accumulate ? detail::load_lanes<double>(target + d) : 0.0));
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
