// SPDX-License-Identifier: MIT
// Attention on the CPU: streaming softmax with the keys across lanes; backward recomputes the probabilities.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <lpo/backend/cpu/attention_backward.hpp>
#include <lpo/backend/cpu/attention_pairs_backward.hpp>
#include <lpo/backend/cpu/attention_tiles.hpp>
#include <lpo/backend/cpu/lane_math.hpp>
#include <lpo/backend/cpu/worker_scratch.hpp>
#include <lpo/kernel/attention.hpp>
#include <lpo/tensor/math.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Forward of one (batch, head) pair for a block of queries; keys lie across lanes. Per block of keys, with scores in
/// units of ln 2:
///   s[i][lane] = q_i . k_lane,  m' = max(m, max_lane s) rounded up,  p = 2^(s - m'),  l = l 2^(m - m') + p,
///   o[i] = o 2^(m - m') + sum_j p[i][j] v_j
/// and at the end out = o / sum of l over the lanes. Queries and results stay as they lie in memory.
template <class T>
struct AttentionForward {
  using S = compute_t<T>;
  static constexpr index_t rows = 48;  ///< whole register tiles of 6 and of 8 rows

  static index_t scratch_size(index_t width) {
    return rows * (attention_block + lanes_for<T>(width) + width + machine_lanes<T>() + 3) + machine_lanes<T>();
  }

  /// `keys` and `values` as keys_across_lanes() and pack_heads() leave them.
  static void run(const kernel::AttentionShape& shape, index_t first, index_t count, const T* q, const S* keys,
                  const S* values, T* out, S* log_sum_exp, S* space) {
    const index_t width = shape.width, step = machine_lanes<T>(), row = lanes_for<T>(width);
    S* const score = space;
    S* const total = score + rows * attention_block;
    S* const sum = total + rows * row;
    S* const query = sum + rows * step;
    S* const highest = query + rows * width;
    S* const factor = highest + rows;
    S* const level = factor + rows;
    S* const edge = level + rows;
    std::fill(highest, highest + rows, S(-1e30));
    constexpr index_t line = 64 / sizeof(T);
    for (index_t i = 0; i < count; ++i)  // arrives while the products run
      for (index_t d = 0; d < width; d += line) __builtin_prefetch(out + (first + i) * shape.out_row + d, 1);
    const auto q_rows = attention_rows(q + first * shape.q_row, shape.q_row, count, width, query);
    const index_t visible = shape.causal ? std::min(shape.keys, first + count) : shape.keys;
    for (index_t begin = 0; begin < visible; begin += attention_block) {
      const index_t block = std::min(attention_block, shape.keys - begin), lanes = lanes_for<T>(block);
      const bool cut = shape.causal && begin + block > first + 1;  // some queries do not see all of these keys
      multiply_rows<false>(count, lanes, q_rows.data, q_rows.stride, 1, keys + begin * width, lanes, width, score,
                           lanes);
      if (cut) set_later_keys(score, lanes, first, count, begin, block, S(-2e30));
      for (index_t lane = 0; lane < step; ++lane) edge[lane] = lanes - step + lane < block ? S(0) : S(-2e30);
      with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
        index_t i = 0;
        for (; i + 4 <= count; i += 4)
          soften<V, 4>(lanes, edge, score + i * lanes, highest + i, sum + i * step, begin == 0 ? 0 : row,
                       total + i * row);
        for (; i < count; ++i)
          soften<V, 1>(lanes, edge, score + i * lanes, highest + i, sum + i * step, begin == 0 ? 0 : row,
                       total + i * row);
      });
      if (cut) set_later_keys(score, lanes, first, count, begin, block, S(0));
      const S* const value_rows = values + begin * row;
      if (begin == 0)
        multiply_rows<false>(count, padded<lanes_t<T>>(width), score, lanes, 1, value_rows, row, block, total, row);
      else
        multiply_rows<true>(count, padded<lanes_t<T>>(width), score, lanes, 1, value_rows, row, block, total, row);
    }
    with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
      for (index_t i = 0; i < count; ++i) factor[i] = lane_sum(load_lanes<V>(sum + i * step));
      for_lanes<V>(
          0, count, [&](index_t i, auto some) __attribute__((always_inline)) {
            const V whole = some.load(factor + i, 1.0f);
            some.store(level + i, some.load(highest + i) * static_cast<S>(log_of_2) + log(whole));
            some.store(factor + i, 1.0f / whole);
          });
      for (index_t i = 0; i < count; ++i)
        for_lanes<V>(
            0, width, [&](index_t d, auto some) __attribute__((always_inline)) {
              some.store(out + (first + i) * shape.out_row + d, load_lanes<V>(total + i * row + d) * factor[i]);
            });
    });
    if (log_sum_exp) std::copy(level, level + count, log_sum_exp + first);
  }

 private:
  /// One block's turn of the running maxima and sums of `Rows` queries; scores become probabilities, `row` numbers of
  /// each total are rescaled. `edge` is added to the last pack: it takes away the lanes without a key. The rows go side
  /// by side: their maxima do not wait for each other.
  template <class V, int Rows>
  static LPO_ALWAYS_INLINE void soften(index_t lanes, const S* edge, S* score, S* highest, S* sum, index_t row,
                                       S* total) {
    constexpr index_t step = LaneTraits<V>::width;
    V top[Rows], part[Rows];
    S peak[Rows];
    unroll<Rows>([&](auto i) __attribute__((always_inline)) {
      S* const last = score + (i + 1) * lanes - step;
      top[i] = load_lanes<V>(last) + load_lanes<V>(edge);
      store_lanes(last, top[i]);
    });
    for (index_t at = 0; at < lanes - step; at += step)
      unroll<Rows>([&](auto i) __attribute__((always_inline)) {
        top[i] = larger(load_lanes<V>(score + i * lanes + at), top[i]);
      });
    unroll<Rows>([&](auto i) __attribute__((always_inline)) {
      const S before = highest[i];
      peak[i] = std::ceil(std::max(before, lane_max(top[i])));
      highest[i] = peak[i];
      part[i] = V{};
      if (row > 0) {
        const V shrink = exp2_above(V{} + (before - peak[i]));
        part[i] = load_lanes<V>(sum + i * step) * shrink;
        for (index_t d = 0; d < row; d += step) {
          S* const at = total + i * row + d;
          store_lanes(at, load_lanes<V>(at) * shrink);
        }
      }
    });
    unroll<Rows>([&](auto i) __attribute__((always_inline)) {
      S* const row_score = score + i * lanes;
      S whole = peak[i];
      if (std::abs(whole) > S(1 << 21)) {
        for (index_t at = 0; at < lanes; at += step)
          store_lanes(row_score + at, load_lanes<V>(row_score + at) - whole);
        whole = 0;
      }
      for (index_t at = 0; at < lanes; at += step) {
        const V p = exp2_above(load_lanes<V>(row_score + at), whole);
        store_lanes(row_score + at, p);
        part[i] += p;
      }
      store_lanes(sum + i * step, part[i]);
    });
  }

  /// Sets what belongs to keys after a query's own.
  static void set_later_keys(S* score, index_t lanes, index_t first, index_t count, index_t begin, index_t block,
                             S value) {
    for (index_t i = 0; i < count; ++i) {
      const index_t own = std::clamp<index_t>(first + i + 1 - begin, 0, block);
      std::fill(score + i * lanes + own, score + i * lanes + block, value);
    }
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
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (detail::attends_in_pairs(shape))
        return detail::AttentionPairForward{detail::attention_pairs(), shape, q, k, v, out, log_sum_exp}.run(ctx);
    }
    using Block = detail::AttentionForward<T>;
    const index_t width = shape.width, blocks = (shape.queries + Block::rows - 1) / Block::rows;
    Scratch<Cpu> scratch(ctx);
    detail::WorkerScratch<S> workspaces(ctx, scratch, Block::scratch_size(width));
    const index_t keys_size = detail::lanes_for<T>(shape.keys) * width, value_row = detail::lanes_for<T>(width);
    const S* const keys = detail::keys_across_lanes<S>(ctx, scratch, shape, k, shape.k_row,
                                                       static_cast<S>(shape.scale * detail::log2_of_e));
    const S* const values =
        detail::pack_heads<S>(ctx, scratch, shape.batch, shape.keys, heads, width, v, shape.v_row, value_row);
    const index_t grain = detail::attention_grain(std::min(shape.queries, Block::rows) * shape.keys * width);
    ctx.executor().parallel_for(pairs * blocks, grain, [&](index_t begin, index_t end) {
      const typename detail::WorkerScratch<S>::Lease space(workspaces);
      for (index_t task = begin; task < end; ++task) {
        const index_t pair = task / blocks, first = task % blocks * Block::rows, column = pair % heads * width;
        const index_t row = pair / heads * shape.queries;
        Block::run(shape, first, std::min(Block::rows, shape.queries - first), q + row * shape.q_row + column,
                   keys + pair * keys_size, values + pair * shape.keys * value_row, out + row * shape.out_row + column,
                   log_sum_exp ? log_sum_exp + pair * shape.queries : nullptr, space.data());
      }
    });
  }

  template <class T>
  static void backward(Context<Cpu>& ctx, const AttentionShape& shape, const T* q, const T* k, const T* v, const T* out,
                       const compute_t<T>* log_sum_exp, const T* dout, T* dq, bool accumulate_q, T* dk,
                       bool accumulate_k, T* dv, bool accumulate_v) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (detail::attends_in_pairs(shape))
        return detail::AttentionPairBackward{detail::attention_pairs(), shape, q, k, v, out, log_sum_exp, dout, dq, dk,
                                             dv, accumulate_q, accumulate_k, accumulate_v}
            .run(ctx);
    }
    detail::AttentionBackward<T> work{shape,        q,           k, v, out, log_sum_exp, dout, dq, dk, dv, accumulate_q,
                                      accumulate_k, accumulate_v};
    work.run(ctx);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
