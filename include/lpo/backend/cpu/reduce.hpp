// SPDX-License-Identifier: MIT
// Row sums, column sums and sums of squares of the CPU. Short runs add up in packs, runs and chunks in double.
#pragma once

#include <algorithm>

#include <lpo/backend/cpu/lane_math.hpp>
#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/kernel/reduce.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Sum of `count` elements: four chains of packs over runs of 1024, the runs in double.
template <class T>
double sum_of_run(const T* x, index_t count) {
  using V = lanes_t<T>;
  constexpr index_t width = LaneTraits<V>::width, run = 1024;
  double total = 0;
  for (index_t start = 0; start < count; start += run) {
    const index_t end = std::min(count, start + run);
    V sum[4] = {};
    index_t at = start;
    for (; at + 4 * width <= end; at += 4 * width)
      for (int chain = 0; chain < 4; ++chain) sum[chain] += load_all<V>(x + at + chain * width);
    for_lanes<V>(at, end, [&](index_t i, auto lanes) { sum[0] += lanes.load(x + i); });
    total += lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  return total;
}

/// Sum of squares of `count` elements, squared and added in double: gradients may be as small or large as float allows.
template <class T>
double squares_of_run(const T* x, index_t count) {
  typedef float HalfPack __attribute__((vector_size(LPO_SIMD_BYTES / 2)));
  typedef double Wide __attribute__((vector_size(LPO_SIMD_BYTES)));
  constexpr int wide_lanes = LPO_SIMD_BYTES / static_cast<int>(sizeof(double));
  Wide sum[2] = {};
  double rest = 0;
  index_t at = 0;
  if constexpr (!std::is_same_v<T, double>) {
    for (; at + pack_width <= count; at += pack_width) {
      const Pack value = load_all<Pack>(x + at);
      HalfPack halves[2];
      std::memcpy(halves, &value, sizeof(value));
      for (int i = 0; i < 2; ++i) {
        const Wide wide = __builtin_convertvector(halves[i], Wide);
        sum[i] += wide * wide;
      }
    }
  }
  for (; at < count; ++at) rest += load_lanes<double>(x + at) * load_lanes<double>(x + at);
  for (int lane = 0; lane < wide_lanes; ++lane) rest += sum[0][lane] + sum[1][lane];
  return rest;
}

}  // namespace detail

namespace kernel {

template <>
struct Reduce<Cpu> {
  template <class T>
  static void row_sums(Context<Cpu>& context, index_t rows, index_t width, const T* x, T* y) {
    if (rows <= 0) return;
    // Rows are cut into pieces, so that the mean of a whole tensor (one row) is threaded too.
    const index_t pieces = std::max<index_t>(1, (width + piece - 1) / piece);
    Scratch<Cpu> scratch(context);
    double* parts = scratch.allocate<double>(rows * pieces);
    const index_t grain = std::max<index_t>(1, piece / std::max<index_t>(1, std::min(width, piece)));
    context.executor().parallel_for(rows * pieces, grain, [&](index_t begin, index_t end) {
      for (index_t part = begin; part < end; ++part) {
        const index_t row = part / pieces, first = part % pieces * piece;
        parts[part] = detail::sum_of_run(x + row * width + first, std::min(piece, width - first));
      }
    });
    for (index_t row = 0; row < rows; ++row) {
      double sum = 0;
      for (index_t i = 0; i < pieces; ++i) sum += parts[row * pieces + i];
      detail::store_lanes(y + row, sum);
    }
  }

  template <class T>
  static void column_sums(Context<Cpu>& context, index_t rows, index_t width, const T* x, T* y, bool accumulate) {
    if (width <= 0) return;
    const index_t height = std::clamp<index_t>(piece / width, 16, 1024);  // rows per partial sum
    const index_t parts = (rows + height - 1) / height;
    Scratch<Cpu> scratch(context);
    auto* sums = scratch.allocate<compute_t<T>>(parts * width);
    context.executor().parallel_for(parts, 1, [&](index_t begin, index_t end) {
      for (index_t part = begin; part < end; ++part)
        columns_of_part(std::min(height, rows - part * height), width, x + part * height * width, sums + part * width);
    });
    for (index_t i = 0; i < width; ++i) {
      double sum = accumulate ? detail::load_lanes<double>(y + i) : 0.0;
      for (index_t part = 0; part < parts; ++part) sum += static_cast<double>(sums[part * width + i]);
      detail::store_lanes(y + i, sum);
    }
  }

  template <class T>
  static double sum_of_squares(Context<Cpu>& context, index_t count, const T* x) {
    const index_t parts = (count + piece - 1) / piece;
    Scratch<Cpu> scratch(context);
    double* sums = scratch.allocate<double>(parts);
    context.executor().parallel_for(parts, 1, [&](index_t begin, index_t end) {
      for (index_t part = begin; part < end; ++part)
        sums[part] = detail::squares_of_run(x + part * piece, std::min(piece, count - part * piece));
    });
    double total = 0;
    for (index_t part = 0; part < parts; ++part) total += sums[part];
    return total;
  }

 private:
  static constexpr index_t piece = 32768;

  template <class T>
  static void columns_of_part(index_t rows, index_t width, const T* x, compute_t<T>* sums) {
    using V = detail::lanes_t<T>;
    constexpr index_t lanes = detail::LaneTraits<V>::width;
    index_t i = 0;
    for (; i + 4 * lanes <= width; i += 4 * lanes) {
      V sum[4] = {};
      for (index_t r = 0; r < rows; ++r)
        for (int chain = 0; chain < 4; ++chain) sum[chain] += detail::load_all<V>(x + r * width + i + chain * lanes);
      for (int chain = 0; chain < 4; ++chain) detail::store_lanes(sums + i + chain * lanes, sum[chain]);
    }
    detail::for_lanes<V>(i, width, [&](index_t at, auto part) {
      V sum{};
      for (index_t r = 0; r < rows; ++r) sum += part.load(x + r * width + at);
      part.store(sums + at, sum);
    });
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
