// SPDX-License-Identifier: MIT
// Group norm, with SiLU or without, on the CPU: packs across channels, blocks of rows over threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <lpo/backend/cpu/lane_math.hpp>
#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/backend/cpu/norm_rows.hpp>
#include <lpo/kernel/normalization.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// One group norm call. An image is cut into blocks of rows (positions in space), by its size alone.
template <class T>
struct GroupNormBlocks {
  using V = lanes_t<T>;
  using S = compute_t<T>;
  static constexpr index_t lane_count = LaneTraits<V>::width;

  explicit GroupNormBlocks(const kernel::GroupNormShape& s)
      : shape(s),
        c(s.c),
        width(s.c / s.groups),
        block_rows(std::min(norm_rows(s.c), std::max<index_t>(1, s.spatial))),
        blocks(std::max<index_t>(1, (s.spatial + block_rows - 1) / block_rows)),
        count(static_cast<double>(s.spatial * width)) {}

  index_t rows(index_t block) const { return std::min(shape.spatial - block * block_rows, block_rows); }
  index_t element(index_t image, index_t block) const { return (image * shape.spatial + block * block_rows) * c; }

  /// first(image, block) for all blocks, then middle(image), then last(image, block). Images of one block run all three
  /// while they are in the cache; larger ones share the threads step by step.
  template <class First, class Middle, class Last>
  void run(Executor& executor, First&& first, Middle&& middle, Last&& last) const {
    if (blocks == 1) {
      const index_t grain = std::max<index_t>(1, norm_rows(c) / std::max<index_t>(1, shape.spatial));
      executor.parallel_for(shape.n, grain, [&](index_t begin, index_t end) {
        for (index_t image = begin; image < end; ++image) {
          first(image, index_t{0});
          middle(image);
          last(image, index_t{0});
        }
      });
      return;
    }
    const auto each = [&](auto& body) {
      executor.parallel_for(shape.n * blocks, 1, [&](index_t task, index_t) { body(task / blocks, task % blocks); });
    };
    each(first);
    executor.parallel_for(shape.n, 1, [&](index_t image, index_t) { middle(image); });
    each(last);
  }

  /// sums[0][c] and sums[1][c]: over the rows of a block, of x - x[row 0] and of its square. The shift is one of the
  /// samples, so that a large mean does not cancel.
  void shifted_sums(const T* x, index_t row_count, S* sums) const {
    index_t at = 0;
    for (; at + 4 * lane_count <= c; at += 4 * lane_count)
      shifted_columns<4>(x + at, row_count, sums + at, AllLanes<V>{});
    for (; at + 2 * lane_count <= c; at += 2 * lane_count)
      shifted_columns<2>(x + at, row_count, sums + at, AllLanes<V>{});
    for_lanes<V>(at, c, [&](index_t rest, auto lanes) { shifted_columns<1>(x + rest, row_count, sums + rest, lanes); });
  }

  template <int Packs, class Lanes>
  void shifted_columns(const T* x, index_t row_count, S* sums, Lanes lanes) const {
    V shift[Packs], sum[Packs] = {}, square[Packs] = {};
    unroll<Packs>([&](auto i) __attribute__((always_inline)) { shift[i] = lanes.load(x + i * lane_count); });
    for (index_t row = 1; row < row_count; ++row)
      unroll<Packs>([&](auto i) __attribute__((always_inline)) {
        const V d = lanes.load(x + row * c + i * lane_count) - shift[i];
        sum[i] += d;
        square[i] += d * d;
      });
    unroll<Packs>([&](auto i) __attribute__((always_inline)) {
      lanes.store(sums + i * lane_count, sum[i]);
      lanes.store(sums + c + i * lane_count, square[i]);
    });
  }

  /// Mean and biased variance of group g of an image from the sums of its blocks: the parallel-variance formula
  /// (Chan, Golub, LeVeque 1983) over all (block, channel) sets, in double.
  void combine(const T* x, const S* sums, index_t image, index_t g, double& mean, double& variance) const {
    const auto each = [&](auto&& body) {
      for (index_t block = 0; block < blocks; ++block) {
        const S* const set = sums + (image * blocks + block) * 2 * c;
        const T* const shift = x + element(image, block);
        const double size = static_cast<double>(rows(block)), inverse = 1.0 / size;
        for (index_t channel = g * width; channel < (g + 1) * width; ++channel) {
          const double offset = static_cast<double>(set[channel]) * inverse;
          body(size, load_lanes<double>(shift + channel) + offset,
               static_cast<double>(set[c + channel]) - size * offset * offset);
        }
      }
    };
    double total = 0.0, squares = 0.0;
    each([&](double size, double set_mean, double) { total += size * set_mean; });
    mean = total / count;
    each([&](double size, double set_mean, double set_squares) {
      squares += set_squares + size * (set_mean - mean) * (set_mean - mean);
    });
    variance = std::max(0.0, squares / count);
  }

  const kernel::GroupNormShape& shape;
  index_t c, width, block_rows, blocks;
  double count;
};

}  // namespace detail

namespace kernel {

template <>
struct GroupNorm<Cpu> {
  template <class T>
  static void forward(Context<Cpu>& ctx, const GroupNormShape& shape, const T* x, const T* weight, const T* bias, T* y,
                      compute_t<T>* mean, compute_t<T>* inverse_deviation) {
    using V = detail::lanes_t<T>;
    using S = compute_t<T>;
    if (shape.n == 0 || shape.spatial == 0 || shape.c == 0) return;
    const detail::GroupNormBlocks<T> work(shape);
    const index_t c = shape.c;
    Scratch<Cpu> scratch(ctx);
    S* const sums = scratch.allocate<S>(shape.n * work.blocks * 2 * c);
    S* const affine = scratch.allocate<S>(shape.n * 2 * c);  // y = x * affine[0] + affine[1]
    work.run(
        ctx.executor(),
        [&](index_t image, index_t block) {
          work.shifted_sums(x + work.element(image, block), work.rows(block),
                            sums + (image * work.blocks + block) * 2 * c);
        },
        [&](index_t image) {
          S* const scale = affine + image * 2 * c;
          for (index_t g = 0; g < shape.groups; ++g) {
            double center, variance;
            work.combine(x, sums, image, g, center, variance);
            const double inverse = 1.0 / std::sqrt(variance + static_cast<double>(shape.epsilon));
            mean[image * shape.groups + g] = static_cast<S>(center);
            inverse_deviation[image * shape.groups + g] = static_cast<S>(inverse);
            for (index_t j = g * work.width; j < (g + 1) * work.width; ++j) {
              const double slope = inverse * detail::load_lanes<double>(weight + j);
              scale[j] = static_cast<S>(slope);
              scale[c + j] = static_cast<S>(detail::load_lanes<double>(bias + j) - center * slope);
            }
          }
        },
        [&](index_t image, index_t block) {
          const S* const scale = affine + image * 2 * c;
          const index_t begin = work.element(image, block);
          const auto apply = [&](auto activate) {
            for (index_t row = 0; row < work.rows(block); ++row)
              detail::for_lanes<V>(
                  0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                    const V z =
                        lanes.load(x + begin + row * c + at) * lanes.load(scale + at) + lanes.load(scale + c + at);
                    lanes.store(y + begin + row * c + at, activate(z));
                  });
          };
          if (shape.silu)
            apply([](V z) __attribute__((always_inline)) { return z * detail::quick_sigmoid(z); });
          else
            apply([](V z) __attribute__((always_inline)) { return z; });
        });
  }

  template <class T>
  static void backward(Context<Cpu>& ctx, const GroupNormShape& shape, const T* x, const T* weight, const T* bias,
                       const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx,
                       bool accumulate_x, T* dweight, bool accumulate_weight, T* dbias, bool accumulate_bias) {
    using V = detail::lanes_t<T>;
    using S = compute_t<T>;
    if (shape.c == 0) return;
    const detail::GroupNormBlocks<T> work(shape);
    const index_t c = shape.c;
    Scratch<Cpu> scratch(ctx);
    S* const sums =
        scratch.allocate<S>(shape.n * work.blocks * 2 * c);            // of dz and dz * xhat, z = xhat * weight + bias
    double* const totals = scratch.allocate<double>(shape.n * 2 * c);  // the same over an image
    S* const factors = scratch.allocate<S>(shape.n * 5 * c);           // xhat = x f0 + f1, dx = dz f2 + xhat f3 + f4
    const auto slope = [&](V z, V g) __attribute__((always_inline)) {
      const V gate = detail::quick_sigmoid(z);
      return g * gate * (1.0f + z * (1.0f - gate));
    };
    // Calls body(at, lanes, xhat, dz) for all packs of a block's row.
    const auto each = [&](index_t image, index_t row_begin, auto with_silu, auto&& body)
        __attribute__((always_inline)) {
      const S* const f = factors + image * 5 * c;
      detail::for_lanes<V>(
          0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
            const V hat = lanes.load(x + row_begin + at) * lanes.load(f + at) + lanes.load(f + c + at);
            V dz = lanes.load(dy + row_begin + at);
            if constexpr (decltype(with_silu)::value)
              dz = slope(hat * lanes.load(weight + at) + lanes.load(bias + at), dz);
            body(at, lanes, hat, dz);
          });
    };
    const auto choose = [&](auto&& body) {
      if (shape.silu)
        body(std::true_type{});
      else
        body(std::false_type{});
    };
    const auto spread = [&](index_t image) {
      S* const f = factors + image * 5 * c;
      for (index_t g = 0; g < shape.groups; ++g) {
        const S center = mean[image * shape.groups + g], inverse = inverse_deviation[image * shape.groups + g];
        std::fill(f + g * work.width, f + (g + 1) * work.width, inverse);
        std::fill(f + c + g * work.width, f + c + (g + 1) * work.width, -center * inverse);
      }
    };
    if (work.blocks > 1)
      for (index_t image = 0; image < shape.n; ++image) spread(image);
    work.run(
        ctx.executor(),
        [&](index_t image, index_t block) {
          if (work.blocks == 1) spread(image);
          S* const sum = sums + (image * work.blocks + block) * 2 * c;
          std::fill(sum, sum + 2 * c, S(0));
          choose([&](auto with_silu) {
            for (index_t row = 0; row < work.rows(block); ++row)
              each(
                  image, work.element(image, block) + row * c,
                  with_silu, [&](index_t at, auto lanes, V hat, V dz) __attribute__((always_inline)) {
                    lanes.store(sum + at, lanes.load(sum + at) + dz);
                    lanes.store(sum + c + at, lanes.load(sum + c + at) + dz * hat);
                  });
          });
        },
        [&](index_t image) {
          double* const total = totals + image * 2 * c;
          detail::sum_blocks(sums + image * work.blocks * 2 * c, work.blocks, 2 * c, 2 * c,
                             [&](index_t j, double sum) { total[j] = sum; });
          S* const f = factors + image * 5 * c;
          for (index_t g = 0; g < shape.groups; ++g) {
            const double inverse = static_cast<double>(inverse_deviation[image * shape.groups + g]);
            double plain = 0.0, along = 0.0;
            for (index_t j = g * work.width; j < (g + 1) * work.width; ++j) {
              plain += total[j] * detail::load_lanes<double>(weight + j);
              along += total[c + j] * detail::load_lanes<double>(weight + j);
            }
            for (index_t j = g * work.width; j < (g + 1) * work.width; ++j) {
              f[2 * c + j] = static_cast<S>(inverse * detail::load_lanes<double>(weight + j));
              f[3 * c + j] = static_cast<S>(-inverse * along / work.count);
              f[4 * c + j] = static_cast<S>(-inverse * plain / work.count);
            }
          }
        },
        [&](index_t image, index_t block) {
          if (!dx) return;
          const S* const f = factors + image * 5 * c;
          choose([&](auto with_silu) {
            for (index_t row = 0; row < work.rows(block); ++row) {
              T* const target = dx + work.element(image, block) + row * c;
              each(
                  image, work.element(image, block) + row * c,
                  with_silu, [&](index_t at, auto lanes, V hat, V dz) __attribute__((always_inline)) {
                    V value = dz * lanes.load(f + 2 * c + at) +
                              (hat * lanes.load(f + 3 * c + at) + lanes.load(f + 4 * c + at));
                    if (accumulate_x) value += lanes.load(target + at);
                    lanes.store(target + at, value);
                  });
            }
          });
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
