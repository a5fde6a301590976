// SPDX-License-Identifier: MIT
// Group norm, with SiLU or without, on the CPU: packs across channels, blocks of rows over threads. The loops over rows
// are compiled for several instruction sets (lane_dispatch.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <lpo/backend/cpu/lane_dispatch.hpp>
#include <lpo/backend/cpu/lane_math.hpp>
#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/backend/cpu/norm_rows.hpp>
#include <lpo/kernel/normalization.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// One group norm call. An image is cut into blocks of rows (positions in space), by its size alone.
template <class T>
struct GroupNormBlocks {
  using S = compute_t<T>;

  explicit GroupNormBlocks(const kernel::GroupNormShape& s)
      : shape(s),
        c(s.c),
        width(s.c / s.groups),
        block_rows(std::min(std::max<index_t>(16, norm_rows(s.c)), std::max<index_t>(1, s.spatial))),
        blocks(std::max<index_t>(1, (s.spatial + block_rows - 1) / block_rows)),
        count(static_cast<double>(s.spatial * width)) {}

  index_t rows(index_t block) const { return std::min(shape.spatial - block * block_rows, block_rows); }
  index_t element(index_t image, index_t block) const { return (image * shape.spatial + block * block_rows) * c; }

  /// first(image, block) for all blocks, then middle(image, group), then last(image, block). Images of one block run all
  /// three while they are in the cache; larger ones share the threads step by step.
  template <class First, class Middle, class Last>
  void run(Executor& executor, First&& first, Middle&& middle, Last&& last) const {
    if (blocks == 1) {
      const index_t grain = std::max<index_t>(1, norm_rows(c) / std::max<index_t>(1, shape.spatial));
      executor.parallel_for(shape.n, grain, [&](index_t begin, index_t end) {
        for (index_t image = begin; image < end; ++image) {
          first(image, index_t{0});
          for (index_t g = 0; g < shape.groups; ++g) middle(image, g);
          last(image, index_t{0});
        }
      });
      return;
    }
    const auto each = [&](auto& body) {
      executor.parallel_for(shape.n * blocks, 1, [&](index_t task, index_t) { body(task / blocks, task % blocks); });
    };
    each(first);
    executor.parallel_for(shape.n * shape.groups, std::max<index_t>(1, 2048 / (blocks * width)),
                          [&](index_t begin, index_t end) {
                            for (index_t at = begin; at < end; ++at) middle(at / shape.groups, at % shape.groups);
                          });
    each(last);
  }

  /// Over the rows of a block: set[0][c] = mean of x - x[row 0], set[1][c] = sum of squared deviations from the mean.
  /// The shift is one of the samples, so that a large mean does not cancel.
  void block_moments(const T* x, index_t row_count, S* set) const {
    with_lanes<T>([&]<class V>() __attribute__((always_inline)) {
      constexpr index_t lane_count = LaneTraits<V>::width;
      index_t at = 0;
      for (; at + 4 * lane_count <= c; at += 4 * lane_count)
        column_moments<V, 4>(x + at, row_count, set + at, AllLanes<V>{});
      for_lanes<V>(
          at, c, [&](index_t rest, auto lanes) __attribute__((always_inline)) {
            column_moments<V, 1>(x + rest, row_count, set + rest, lanes);
          });
    });
  }

  template <class V, int Packs, class Lanes>
  LPO_ALWAYS_INLINE void column_moments(const T* x, index_t row_count, S* set, Lanes lanes) const {
    constexpr index_t lane_count = LaneTraits<V>::width;
    V shift[Packs], sum[Packs] = {}, square[Packs] = {};
    const S inverse = S(1) / static_cast<S>(row_count);
    unroll<Packs>([&](auto i) __attribute__((always_inline)) { shift[i] = lanes.load(x + i * lane_count); });
    for (index_t row = 1; row < row_count; ++row)
      unroll<Packs>([&](auto i) __attribute__((always_inline)) {
        const V d = lanes.load(x + row * c + i * lane_count) - shift[i];
        sum[i] += d;
        square[i] += d * d;
      });
    unroll<Packs>([&](auto i) __attribute__((always_inline)) {
      const V offset = sum[i] * inverse;
      lanes.store(set + i * lane_count, offset);
      lanes.store(set + c + i * lane_count, square[i] - sum[i] * offset);
    });
  }

  /// Mean and biased variance of group g of an image from the moments of its blocks: the parallel-variance formula
  /// (Chan, Golub, LeVeque 1983) over all (block, channel) sets, in double.
  void combine(const T* x, const S* moments, index_t image, index_t g, double& mean, double& variance) const {
    const auto each = [&](auto&& body) __attribute__((always_inline)) {
      for (index_t block = 0; block < blocks; ++block) {
        const S* const set = moments + (image * blocks + block) * 2 * c;
        const T* const shift = x + element(image, block);
        const double size = static_cast<double>(rows(block));
        for (index_t j = g * width; j < (g + 1) * width; ++j)
          body(size, load_lanes<double>(shift + j) + static_cast<double>(set[j]), set[c + j]);
      }
    };
    double total = 0.0, squares = 0.0;
    each([&](double size, double set_mean, S) { total += size * set_mean; });
    mean = total / count;
    each([&](double size, double set_mean, S set_squares) {
      squares += static_cast<double>(set_squares) + size * (set_mean - mean) * (set_mean - mean);
    });
    variance = std::max(0.0, squares / count);
  }

  const kernel::GroupNormShape& shape;
  index_t c, width, block_rows, blocks;
  double count;
};

/// Gradient of one group norm call: sums of dz and dz xhat over space, z = xhat * weight + bias, then
/// dx = inverse (dz weight - mean(dz weight) - xhat mean(dz weight xhat)), means over the group.
template <class T>
struct GroupNormGradient {
  using S = compute_t<T>;

  const GroupNormBlocks<T>& work;
  const T *x, *weight, *bias;
  const S *mean, *inverse_deviation;
  const T* dy;
  T* dx;
  bool accumulate;
  bool keep;       ///< dx keeps dz between the two passes, so that the sigmoid is computed once
  S* sums;         ///< [n, blocks, 2, c]: of dz and of dz xhat
  double* totals;  ///< [n, 2, c]: the same over an image
  S* factors;      ///< [n, 5, c]: xhat = (x - f0) f1, dx = dz f2 + xhat f3 + f4

  S* image_factors(index_t image) const { return factors + image * 5 * work.c; }

  void set_statistics(index_t image) const {
    S* const f = image_factors(image);
    for (index_t g = 0; g < work.shape.groups; ++g) {
      const index_t at = image * work.shape.groups + g, begin = g * work.width, end = begin + work.width;
      std::fill(f + begin, f + end, mean[at]);
      std::fill(f + work.c + begin, f + work.c + end, inverse_deviation[at]);
    }
  }

  template <bool Silu>
  void sum_block(index_t image, index_t block) const {
    const index_t c = work.c;
    const S* const f = image_factors(image);
    S* const sum = sums + (image * work.blocks + block) * 2 * c;
    std::fill(sum, sum + 2 * c, S(0));
    const index_t begin = work.element(image, block), end = begin + work.rows(block) * c;
    const T *const input = x, *const slopes = dy, *const scale = weight, *const offset = bias;
    T* const kept = keep ? dx : nullptr;
    with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
      for (index_t row = begin; row < end; row += c) {
        for_lanes<V>(
            0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
              const V hat = (lanes.load(input + row + at) - lanes.load(f + at)) * lanes.load(f + c + at);
              V dz = lanes.load(slopes + row + at);
              if constexpr (Silu) dz = dz * slope(hat * lanes.load(scale + at) + lanes.load(offset + at));
              if (Silu && kept) lanes.store(kept + row + at, dz);
              lanes.store(sum + at, lanes.load(sum + at) + dz);
              lanes.store(sum + c + at, lanes.load(sum + c + at) + dz * hat);
            });
      }
    });
  }

  void combine(index_t image, index_t g) const {
    const index_t c = work.c, begin = g * work.width, end = begin + work.width;
    double* const total = totals + image * 2 * c;
    for (index_t kind = 0; kind < 2 * c; kind += c)
      sum_blocks(sums + image * work.blocks * 2 * c + kind + begin, work.blocks, 2 * c, work.width,
                 [&](index_t j, double sum) { total[kind + begin + j] = sum; });
    S* const f = image_factors(image);
    const double inverse = static_cast<double>(inverse_deviation[image * work.shape.groups + g]);
    double plain = 0.0, along = 0.0;
    for (index_t j = begin; j < end; ++j) {
      plain += total[j] * load_lanes<double>(weight + j);
      along += total[c + j] * load_lanes<double>(weight + j);
      f[2 * c + j] = static_cast<S>(inverse * load_lanes<double>(weight + j));
    }
    std::fill(f + 3 * c + begin, f + 3 * c + end, static_cast<S>(-inverse * along / work.count));
    std::fill(f + 4 * c + begin, f + 4 * c + end, static_cast<S>(-inverse * plain / work.count));
  }

  template <bool Silu>
  void write_block(index_t image, index_t block) const {
    const index_t c = work.c;
    const S* const f = image_factors(image);
    const T *const input = x, *const slopes = keep ? dx : dy, *const scale = weight, *const offset = bias;
    T* const target = dx;
    const bool add = accumulate;
    const index_t begin = work.element(image, block), end = begin + work.rows(block) * c;
    with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
      for (index_t row = begin; row < end; row += c) {
        for_lanes<V>(
            0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
              const V hat = (lanes.load(input + row + at) - lanes.load(f + at)) * lanes.load(f + c + at);
              V dz = lanes.load(slopes + row + at);
              if constexpr (Silu) dz = dz * slope(hat * lanes.load(scale + at) + lanes.load(offset + at));
              V value =
                  dz * lanes.load(f + 2 * c + at) + (hat * lanes.load(f + 3 * c + at) + lanes.load(f + 4 * c + at));
              if (add) value += lanes.load(target + row + at);
              lanes.store(target + row + at, value);
            });
      }
    });
  }

  /// d silu(z) / dz
  template <class V>
  static LPO_ALWAYS_INLINE V slope(V z) {
    const V gate = quick_sigmoid(z);
    return gate * (1.0f + z * (1.0f - gate));
  }
};

}  // namespace detail

namespace kernel {

template <>
struct GroupNorm<Cpu> {
  template <class T>
  static void forward(Context<Cpu>& ctx, const GroupNormShape& shape, const T* x, const T* weight, const T* bias, T* y,
                      compute_t<T>* mean, compute_t<T>* inverse_deviation) {
    using S = compute_t<T>;
    if (shape.n == 0 || shape.spatial == 0 || shape.c == 0) return;
    const detail::GroupNormBlocks<T> work(shape);
    const index_t c = shape.c;
    Scratch<Cpu> scratch(ctx);
    S* const moments = scratch.allocate<S>(shape.n * work.blocks * 2 * c);
    S* const affine = scratch.allocate<S>(shape.n * 3 * c);  // y = (x - affine[0]) affine[1] + affine[2]
    work.run(
        ctx.executor(),
        [&](index_t image, index_t block) {
          work.block_moments(x + work.element(image, block), work.rows(block),
                             moments + (image * work.blocks + block) * 2 * c);
        },
        [&](index_t image, index_t g) {
          S* const a = affine + image * 3 * c;
          double center, variance;
          work.combine(x, moments, image, g, center, variance);
          const double inverse = 1.0 / std::sqrt(variance + static_cast<double>(shape.epsilon));
          mean[image * shape.groups + g] = static_cast<S>(center);
          inverse_deviation[image * shape.groups + g] = static_cast<S>(inverse);
          for (index_t j = g * work.width; j < (g + 1) * work.width; ++j) {
            const double slope = inverse * detail::load_lanes<double>(weight + j);
            a[j] = static_cast<S>(center);
            a[c + j] = static_cast<S>(slope);
            // what rounding took from the mean is given back here
            a[2 * c + j] =
                static_cast<S>(detail::load_lanes<double>(bias + j) + (static_cast<double>(a[j]) - center) * slope);
          }
        },
        [&](index_t image, index_t block) {
          const S* const a = affine + image * 3 * c;
          const index_t begin = work.element(image, block), end = begin + work.rows(block) * c;
          const auto apply = [&](auto silu) {
            detail::with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
              for (index_t row = begin; row < end; row += c)
                detail::for_lanes<V>(
                    0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                      V z = (lanes.load(x + row + at) - lanes.load(a + at)) * lanes.load(a + c + at) +
                            lanes.load(a + 2 * c + at);
                      if constexpr (decltype(silu)::value) z = z * detail::quick_sigmoid(z);
                      lanes.store(y + row + at, z);
                    });
            });
          };
          if (shape.silu)
            apply(std::true_type{});
          else
            apply(std::false_type{});
        });
  }

  template <class T>
  static void backward(Context<Cpu>& ctx, const GroupNormShape& shape, const T* x, const T* weight, const T* bias,
                       const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx,
                       bool accumulate_x, T* dweight, bool accumulate_weight, T* dbias, bool accumulate_bias) {
    using S = compute_t<T>;
    if (shape.c == 0) return;
    const detail::GroupNormBlocks<T> work(shape);
    const index_t c = shape.c;
    Scratch<Cpu> scratch(ctx);
    S* const sums = scratch.allocate<S>(shape.n * work.blocks * 2 * c);
    double* const totals = scratch.allocate<double>(shape.n * 2 * c);
    S* const factors = scratch.allocate<S>(shape.n * 5 * c);
    const bool keep = shape.silu && dx && !accumulate_x && std::is_same_v<T, S>;
    const detail::GroupNormGradient<T> gradient{work,         x,    weight, bias,   mean,   inverse_deviation, dy, dx,
                                                accumulate_x, keep, sums,   totals, factors};
    if (work.blocks > 1)
      for (index_t image = 0; image < shape.n; ++image) gradient.set_statistics(image);
    work.run(
        ctx.executor(),
        [&](index_t image, index_t block) {
          if (work.blocks == 1) gradient.set_statistics(image);
          if (shape.silu)
            gradient.template sum_block<true>(image, block);
          else
            gradient.template sum_block<false>(image, block);
        },
        [&](index_t image, index_t g) { gradient.combine(image, g); },
        [&](index_t image, index_t block) {
          if (dx && shape.silu && !keep) gradient.template write_block<true>(image, block);
          if (dx && (!shape.silu || keep)) gradient.template write_block<false>(image, block);
        });
    if (dbias)
      detail::sum_blocks(totals, shape.n, 2 * c, c,
                         [&](index_t j, double sum) { detail::put_total(dbias, j, sum, accumulate_bias); });
    if (dweight)
      detail::sum_blocks(totals + c, shape.n, 2 * c, c,
                         [&](index_t j, double sum) { detail::put_total(dweight, j, sum, accumulate_weight); });
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
