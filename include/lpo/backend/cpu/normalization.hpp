// SPDX-License-Identifier: MIT
// Layer norm and row softmax on the CPU, a row at a time in packs of this machine's width; group norm is in its own
// file.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <lpo/backend/cpu/group_norm.hpp>
#include <lpo/backend/cpu/lane_dispatch.hpp>
#include <lpo/backend/cpu/lane_math.hpp>
#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/backend/cpu/norm_rows.hpp>
#include <lpo/kernel/normalization.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct LayerNorm<Cpu> {
  template <class T>
  static void forward(Context<Cpu>& ctx, index_t rows, index_t c, float epsilon, const T* x, const T* weight,
                      const T* bias, T* y, compute_t<T>* mean, compute_t<T>* inverse_deviation) {
    using S = compute_t<T>;
    if (c == 0) return;
    ctx.executor().parallel_for(rows, detail::norm_rows(c), [&](index_t begin, index_t end) {
      detail::with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
        for (index_t row = begin; row < end; ++row) {
          const T* const from = x + row * c;
          T* const to = y + row * c;
          const V sum = detail::sum_row<V>(
              c, [&](index_t at, auto lanes) __attribute__((always_inline)) { return lanes.load(from + at); });
          const S guess = static_cast<S>(static_cast<double>(detail::lane_sum(sum)) / static_cast<double>(c));
          // The second pass corrects the rounding of the first mean as well.
          V rest{};
          const V squares = detail::sum_row<V>(
              c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                const V d = lanes.load(from + at, guess) - guess;
                rest += d;
                return d * d;
              });
          const double correction = static_cast<double>(detail::lane_sum(rest)) / static_cast<double>(c);
          const double center = static_cast<double>(guess) + correction;
          const double variance =
              static_cast<double>(detail::lane_sum(squares)) / static_cast<double>(c) - correction * correction;
          const double inverse = 1.0 / std::sqrt(std::max(0.0, variance) + static_cast<double>(epsilon));
          mean[row] = static_cast<S>(center);
          inverse_deviation[row] = static_cast<S>(inverse);
          const S scale = static_cast<S>(inverse);
          const S rest_of_mean = static_cast<S>((static_cast<double>(mean[row]) - center) * inverse);
          const S rounded = mean[row];
          detail::for_lanes<V>(
              0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                const V hat = (lanes.load(from + at) - rounded) * scale + rest_of_mean;
                lanes.store(to + at, hat * lanes.load(weight + at) + lanes.load(bias + at));
              });
        }
      });
    });
  }

  template <class T>
  static void backward(Context<Cpu>& ctx, index_t rows, index_t c, const T* x, const T* weight,
                       const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx,
                       bool accumulate_x, T* dweight, bool accumulate_weight, T* dbias, bool accumulate_bias) {
    using S = compute_t<T>;
    if (c == 0) return;
    const index_t grain = detail::norm_rows(c), chunks = (rows + grain - 1) / grain;
    const bool parameters = dweight || dbias;
    Scratch<Cpu> scratch(ctx);
    S* const sums = scratch.allocate<S>(parameters ? chunks * 2 * c : 0);  // of dy and dy * xhat
    ctx.executor().parallel_for(rows, grain, [&](index_t begin, index_t end) {
      S* const sum = sums + begin / grain * 2 * c;
      if (parameters) std::fill(sum, sum + 2 * c, S(0));
      detail::with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
        for (index_t row = begin; row < end; ++row) {
          const T* const from = x + row * c;
          const T* const slope = dy + row * c;
          const S center = mean[row], inverse = inverse_deviation[row];
          if (parameters)
            detail::for_lanes<V>(
                0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                  const V g = lanes.load(slope + at);
                  lanes.store(sum + at, lanes.load(sum + at) + g);
                  lanes.store(sum + c + at,
                              lanes.load(sum + c + at) + g * ((lanes.load(from + at) - center) * inverse));
                });
          if (!dx) continue;
          V along{};
          const V plain = detail::sum_row<V>(
              c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                const V g = lanes.load(slope + at) * lanes.load(weight + at);
                along += g * ((lanes.load(from + at) - center) * inverse);
                return g;
              });
          const S plain_mean = detail::lane_sum(plain) / static_cast<S>(c);
          const S along_mean = detail::lane_sum(along) / static_cast<S>(c);
          T* const target = dx + row * c;
          detail::for_lanes<V>(
              0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                const V hat = (lanes.load(from + at) - center) * inverse;
                V value = inverse * (lanes.load(slope + at) * lanes.load(weight + at) - plain_mean - hat * along_mean);
                if (accumulate_x) value += lanes.load(target + at);
                lanes.store(target + at, value);
              });
        }
      });
    });
    if (dbias)
      detail::sum_blocks(sums, chunks, 2 * c, c,
                         [&](index_t j, double sum) { detail::put_total(dbias, j, sum, accumulate_bias); });
    if (dweight)
      detail::sum_blocks(sums + c, chunks, 2 * c, c,
                         [&](index_t j, double sum) { detail::put_total(dweight, j, sum, accumulate_weight); });
  }
};

template <>
struct Softmax<Cpu> {
  template <class T>
  static void forward(Context<Cpu>& ctx, index_t rows, index_t c, const T* x, T* y) {
    using S = compute_t<T>;
    if (c == 0) return;
    ctx.executor().parallel_for(rows, detail::norm_rows(c), [&](index_t begin, index_t end) {
      detail::with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
        for (index_t row = begin; row < end; ++row) {
          const T* const from = x + row * c;
          T* const to = y + row * c;
          const S first = detail::load_lanes<S>(from);
          V top = detail::broadcast_lanes<V>(first);
          detail::for_lanes<V>(
              0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                top = detail::larger(top, lanes.load(from + at, first));
              });
          const S highest = detail::lane_max(top);
          // 16-bit storage would round the exponentials before they are divided: there they are computed again.
          constexpr bool keeps = std::is_same_v<T, S>;
          const V sum = detail::sum_row<V>(
              c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                const V e = detail::exp_or_zero(lanes.load(from + at, S(-HUGE_VALF)) - highest);
                if constexpr (keeps) lanes.store(to + at, e);
                return e;
              });
          const S inverse = S(1) / detail::lane_sum(sum);
          detail::for_lanes<V>(
              0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                if constexpr (keeps)
                  lanes.store(to + at, lanes.load(to + at) * inverse);
                else
                  lanes.store(to + at, detail::exp_or_zero(lanes.load(from + at) - highest) * inverse);
              });
        }
      });
    });
  }

  template <class T>
  static void backward(Context<Cpu>& ctx, index_t rows, index_t c, const T* y, const T* dy, T* dx, bool accumulate) {
    using S = compute_t<T>;
    if (c == 0) return;
    ctx.executor().parallel_for(rows, detail::norm_rows(c), [&](index_t begin, index_t end) {
      detail::with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
        for (index_t row = begin; row < end; ++row) {
          const index_t start = row * c;
          const V products = detail::sum_row<V>(
              c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                return lanes.load(y + start + at) * lanes.load(dy + start + at);
              });
          const S along = detail::lane_sum(products);
          detail::for_lanes<V>(
              0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                V value = lanes.load(y + start + at) * (lanes.load(dy + start + at) - along);
                if (accumulate) value += lanes.load(dx + start + at);
                lanes.store(dx + start + at, value);
              });
        }
      });
    });
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
