// SPDX-License-Identifier: MIT
// Attention on the CPU: streaming softmax with the queries across lanes; backward recomputes the probabilities.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <lpo/backend/cpu/attention_backward.hpp>
#include <lpo/backend/cpu/attention_tiles.hpp>
#include <lpo/backend/cpu/lane_math.hpp>
#include <lpo/backend/cpu/worker_scratch.hpp>
#include <lpo/kernel/attention.hpp>
#include <lpo/tensor/math.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Forward of one head for a block of queries, one query per lane. Per block of keys, with scores in units of ln 2:
///   s[j][lane] = k_j . q_lane,  m' = max(m, max_j s),  p = 2^(s - m'),  l = l 2^(m - m') + sum_j p,
///   o[d][lane] = o 2^(m - m') + sum_j p[j][lane] v[j][d]
/// and at the end out = o / l. Sums over keys run down the rows, so nothing is ever summed across lanes.
template <class T>
struct AttentionForward {
  using S = compute_t<T>;

  static index_t scratch_size(index_t width) {
    return (2 * width + attention_block + 4) * attention_lanes<T>() +
           (std::is_same_v<T, S> ? 0 : 2 * attention_block * width);
  }

  /// Row is T, or S where the keys and values were packed.
  template <class Row>
  static void run(const kernel::AttentionShape& shape, index_t first, index_t count, const T* q, const Row* k,
                  index_t k_row, const Row* v, index_t v_row, T* out, S* log_sum_exp, S* space) {
    const index_t width = shape.width, lanes = lanes_for<T>(count);
    S* const query = space;
    S* const total = query + width * lanes;
    S* const score = total + width * lanes;
    S* const highest = score + attention_block * lanes;
    S* const sum = highest + lanes;
    S* const factor = sum + lanes;
    S* const level = factor + lanes;
    S* const k_space = level + lanes;
    S* const v_space = k_space + attention_block * width;
    load_columns(q + first * shape.q_row, shape.q_row, count, width, static_cast<S>(shape.scale * log2_of_e), query,
                 lanes);
    std::fill(highest, highest + lanes, S(-1e30));
    std::fill(sum, sum + lanes, S(0));
    const index_t keys = shape.causal ? std::min(shape.keys, first + count) : shape.keys;
    for (index_t begin = 0; begin < keys; begin += attention_block) {
      const index_t block = std::min(attention_block, keys - begin);
      const bool cut = shape.causal && begin + block > first + 1;  // some queries do not see all of these keys
      const auto k_rows = attention_rows(k + begin * k_row, k_row, block, width, k_space);
      multiply_rows<false>(block, lanes, k_rows.data, k_rows.stride, 1, query, lanes, width, score, lanes);
      if (cut) set_later_keys(score, lanes, first, begin, block, S(-2e30));
      with_lanes<T>([&]<class V>() __attribute__((always_inline)) {
        index_t at = 0;
        for (; at + 4 * LaneTraits<V>::width <= lanes; at += 4 * LaneTraits<V>::width)
          soften<V, 4>(block, lanes, score + at, highest + at, sum + at, begin > 0 ? width : 0, total + at);
        for (; at < lanes; at += LaneTraits<V>::width)
          soften<V, 1>(block, lanes, score + at, highest + at, sum + at, begin > 0 ? width : 0, total + at);
      });
      if (cut) set_later_keys(score, lanes, first, begin, block, S(0));
      const auto v_rows = attention_rows(v + begin * v_row, v_row, block, width, v_space);
      if (begin == 0)
        multiply_rows<false>(width, lanes, v_rows.data, 1, v_rows.stride, score, lanes, block, total, lanes);
      else
        multiply_rows<true>(width, lanes, v_rows.data, 1, v_rows.stride, score, lanes, block, total, lanes);
    }
    for (index_t lane = 0; lane < lanes; ++lane) {
      factor[lane] = S(1) / sum[lane];
      level[lane] = highest[lane] * static_cast<S>(log_of_2) + log(sum[lane]);
    }
    store_columns(total, lanes, factor, count, width, out + first * shape.out_row, shape.out_row, false);
    if (log_sum_exp) std::copy(level, level + count, log_sum_exp + first);
  }

 private:
  /// One block's turn of the running maximum and sum; scores become probabilities, `rows` rows of the total are
  /// rescaled. The packs go side by side: their maxima and exponentials do not wait for each other.
  template <class V, int Packs>
  static LPO_ALWAYS_INLINE void soften(index_t block, index_t lanes, S* score, S* highest, S* sum, index_t rows,
                                       S* total) {
    constexpr index_t step = LaneTraits<V>::width;
    V top[Packs], shrink[Packs], part[Packs];
    unroll<Packs>([&](auto i) __attribute__((always_inline)) { top[i] = load_lanes<V>(highest + i * step); });
    for (index_t j = 0; j < block; ++j)
      unroll<Packs>([&](auto i) __attribute__((always_inline)) {
        top[i] = larger(load_lanes<V>(score + j * lanes + i * step), top[i]);
      });
    unroll<Packs>([&](auto i) __attribute__((always_inline)) {
      shrink[i] = exp2_above(load_lanes<V>(highest + i * step) - top[i]);
      store_lanes(highest + i * step, top[i]);
      part[i] = V{};
    });
    for (index_t j = 0; j < block; ++j)
      unroll<Packs>([&](auto i) __attribute__((always_inline)) {
        const V p = exp2_above(load_lanes<V>(score + j * lanes + i * step) - top[i]);
        store_lanes(score + j * lanes + i * step, p);
        part[i] += p;
      });
    unroll<Packs>([&](auto i) __attribute__((always_inline)) {
      store_lanes(sum + i * step, load_lanes<V>(sum + i * step) * shrink[i] + part[i]);
    });
    for (index_t d = 0; d < rows; ++d)
      unroll<Packs>([&](auto i) __attribute__((always_inline)) {
        S* const at = total + d * lanes + i * step;
        store_lanes(at, load_lanes<V>(at) * shrink[i]);
      });
  }

  /// Sets what belongs to keys after a query's own.
  static void set_later_keys(S* score, index_t lanes, index_t first, index_t begin, index_t block, S value) {
    for (index_t j = std::max<index_t>(0, first + 1 - begin); j < block; ++j)
      std::fill(score + j * lanes, score + j * lanes + std::min(lanes, begin + j - first), value);
  }
};

}  // namespace detail

namespace kernel {

template <>
struct Attention<Cpu> {
  /// Without keys `out` is zero and `log_sum_exp` is minus infinity.
  template <class T>
  static void forward(Context<Cpu>& ctx, const AttentionShape& shape, const T* q, const T* k, const T* v, T* out,
                      compute_t<T>* log_sum_exp) {
    using S = compute_t<T>;
    const index_t heads = shape.heads, pairs = shape.batch * heads;
    if (pairs == 0 || shape.queries == 0) return;
    if (shape.keys == 0) {
      for (index_t row = 0; row < shape.batch * shape.queries; ++row)
        std::fill(out + row * shape.out_row, out + row * shape.out_row + heads * shape.width, static_cast<T>(S(0)));
      if (log_sum_exp) std::fill(log_sum_exp, log_sum_exp + pairs * shape.queries, S(-HUGE_VAL));
      return;
    }
    using Block = detail::AttentionForward<T>;
    const index_t lanes = detail::attention_lanes<T>();
    const index_t width = shape.width, blocks = (shape.queries + lanes - 1) / lanes;
    Scratch<Cpu> scratch(ctx);
    detail::WorkerScratch<S> workspaces(ctx, scratch, Block::scratch_size(width));
    const index_t padded = detail::lanes_for<T>(std::min(shape.queries, lanes));
    const auto run = [&](auto&& keys_of) {
      ctx.executor().parallel_for(
          pairs * blocks, detail::attention_grain(padded * shape.keys * width), [&](index_t begin, index_t end) {
            const typename detail::WorkerScratch<S>::Lease space(workspaces);
            for (index_t task = begin; task < end; ++task) {
              const index_t pair = task / blocks, first = task % blocks * lanes;
              const index_t count = std::min(lanes, shape.queries - first), column = pair % heads * width;
              const index_t row = pair / heads * shape.queries;
              S* const level = log_sum_exp ? log_sum_exp + pair * shape.queries : nullptr;
              const auto keys = keys_of(pair);
              Block::run(shape, first, count, q + row * shape.q_row + column, keys.k, keys.k_row, keys.v, keys.v_row,
                         out + row * shape.out_row + column, level, space.data());
            }
          });
    };
    if (blocks > 2 && (std::is_same_v<T, S> ? heads > 1 && shape.keys > detail::attention_block : true)) {
      const S* const k_packed =
          detail::pack_heads<S>(ctx, scratch, shape.batch, shape.keys, heads, width, k, shape.k_row);
      const S* const v_packed =
          detail::pack_heads<S>(ctx, scratch, shape.batch, shape.keys, heads, width, v, shape.v_row);
      run([&](index_t pair) {
        const index_t at = pair * shape.keys * width;
        return Keys<S>{k_packed + at, width, v_packed + at, width};
      });
    } else {
      run([&](index_t pair) {
        const index_t row = pair / heads * shape.keys, column = pair % heads * width;
        return Keys<T>{k + row * shape.k_row + column, shape.k_row, v + row * shape.v_row + column, shape.v_row};
      });
    }
  }

  template <class T>
  static void backward(Context<Cpu>& ctx, const AttentionShape& shape, const T* q, const T* k, const T* v, const T* out,
                       const compute_t<T>* log_sum_exp, const T* dout, T* dq, bool accumulate_q, T* dk,
                       bool accumulate_k, T* dv, bool accumulate_v) {
    detail::AttentionBackward<T> work{shape,        q,           k, v, out, log_sum_exp, dout, dq, dk, dv, accumulate_q,
                                      accumulate_k, accumulate_v};
    work.run(ctx);
  }

 private:
  template <class Row>
  struct Keys {
    const Row* k;
    index_t k_row;
    const Row* v;
    index_t v_row;
  };
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
