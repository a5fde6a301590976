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

/// Forward of one head for up to Packs packs of queries, one query per lane. Per block of keys:
///   s[j][lane] = k_j . q_lane,  m' = max(m, max_j s),  p = exp(s - m'),  l = l exp(m - m') + sum_j p,
///   o[d][lane] = o exp(m - m') + sum_j p[j][lane] v[j][d]
/// and at the end out = o / l. Sums over keys run down the rows, so nothing is ever summed across lanes.
template <class T, int Packs>
struct AttentionForward {
  using V = lanes_t<T>;
  using S = compute_t<T>;
  static constexpr index_t width_of_pack = LaneTraits<V>::width;
  static constexpr index_t lanes = Packs * width_of_pack;

  static index_t scratch_size(index_t width) {
    return (2 * width + attention_block + 3) * lanes + (std::is_same_v<T, S> ? 0 : 2 * attention_block * width);
  }

  /// Row is T, or S where the keys and values were packed.
  template <class Row>
  static void run(const kernel::AttentionShape& shape, index_t first, index_t count, const T* q, const Row* k,
                  index_t k_row, const Row* v, index_t v_row, T* out, S* log_sum_exp, S* space) {
    const index_t width = shape.width;
    S* const query = space;
    S* const total = query + width * lanes;
    S* const score = total + width * lanes;
    S* const factor = score + attention_block * lanes;
    S* const level = factor + lanes;
    S* const k_space = level + lanes;
    S* const v_space = k_space + attention_block * width;
    load_columns<V>(q + first * shape.q_row, shape.q_row, count, width, static_cast<S>(shape.scale), query, lanes);

    V highest[Packs], sum[Packs];
    for (int i = 0; i < Packs; ++i) {
      highest[i] = broadcast_lanes<V>(S(-1e30));
      sum[i] = V{};
    }
    const index_t keys = shape.causal ? std::min(shape.keys, first + count) : shape.keys;
    for (index_t begin = 0; begin < keys; begin += attention_block) {
      const index_t block = std::min(attention_block, keys - begin);
      const auto k_rows = attention_rows<V>(k + begin * k_row, k_row, block, width, k_space);
      multiply_rows<V, false>(block, lanes, k_rows.data, k_rows.stride, 1, query, lanes, width, score, lanes);
      if (shape.causal && begin + block > first + 1) hide_later_keys(score, first, begin, block);
      // All packs side by side: their maxima and exponentials do not wait for each other.
      V top[Packs], shrink[Packs];
      for_packs([&](auto i) __attribute__((always_inline)) { top[i] = highest[i]; });
      for (index_t j = 0; j < block; ++j)
        for_packs([&](auto i)
                      __attribute__((always_inline)) { top[i] = larger(top[i], load_lanes<V>(pack(score, j, i))); });
      for_packs([&](auto i) __attribute__((always_inline)) {
        shrink[i] = exp_or_zero(highest[i] - top[i]);
        highest[i] = top[i];
        sum[i] *= shrink[i];
      });
      for (index_t j = 0; j < block; ++j)
        for_packs([&](auto i) __attribute__((always_inline)) {
          const V p = exp_or_zero(load_lanes<V>(pack(score, j, i)) - top[i]);
          store_lanes(pack(score, j, i), p);
          sum[i] += p;
        });
      if (begin > 0)
        for (index_t d = 0; d < width; ++d)
          for_packs([&](auto i) __attribute__((always_inline)) {
            store_lanes(pack(total, d, i), load_lanes<V>(pack(total, d, i)) * shrink[i]);
          });
      const auto v_rows = attention_rows<V>(v + begin * v_row, v_row, block, width, v_space);
      if (begin == 0)
        multiply_rows<V, false>(width, lanes, v_rows.data, 1, v_rows.stride, score, lanes, block, total, lanes);
      else
        multiply_rows<V, true>(width, lanes, v_rows.data, 1, v_rows.stride, score, lanes, block, total, lanes);
    }
    for (int i = 0; i < Packs; ++i) {
      store_lanes(factor + i * width_of_pack, S(1) / sum[i]);
      store_lanes(level + i * width_of_pack, highest[i] + log(sum[i]));
    }
    store_columns<V>(total, lanes, factor, count, width, out + first * shape.out_row, shape.out_row, false);
    if (log_sum_exp) std::copy(level, level + count, log_sum_exp + first);
  }

 private:
  template <class Body>
  static LPO_ALWAYS_INLINE void for_packs(Body&& body) {
    unroll<Packs>(body);
  }
  static LPO_ALWAYS_INLINE S* pack(S* rows, index_t row, int i) { return rows + row * lanes + i * width_of_pack; }

  static void hide_later_keys(S* score, index_t first, index_t begin, index_t block) {
    for (index_t j = std::max<index_t>(0, first + 1 - begin); j < block; ++j)
      for (int i = 0; i < Packs; ++i) {
        S* const at = score + j * lanes + i * width_of_pack;
        const V query_number = lane_numbers<V>() + static_cast<S>(first + i * width_of_pack);
        const auto hidden = query_number < broadcast_lanes<V>(static_cast<S>(begin + j));
        store_lanes(at, select(hidden, broadcast_lanes<V>(S(-2e30)), load_lanes<V>(at)));
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
    using Block = detail::AttentionForward<T, detail::attention_packs<T>>;
    constexpr index_t lanes = Block::lanes;
    const index_t width = shape.width, blocks = (shape.queries + lanes - 1) / lanes;
    Scratch<Cpu> scratch(ctx);
    detail::WorkerScratch<S> workspaces(ctx, scratch, Block::scratch_size(width));
    const index_t padded = detail::padded<detail::lanes_t<T>>(std::min(shape.queries, lanes));
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
              detail::with_packs<T>(count, [&](auto packs) {
                detail::AttentionForward<T, decltype(packs)::value>::run(
                    shape, first, count, q + row * shape.q_row + column, keys.k, keys.k_row, keys.v, keys.v_row,
                    out + row * shape.out_row + column, level, space.data());
              });
            }
          });
    };
    if (blocks > 2 && (heads > 1 || !std::is_same_v<T, S>)) {
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

  /// With many (batch, head) pairs a task is one pair and finishes dq, dk and dv from one recomputation of the
  /// probabilities; with few, blocks of keys (dk, dv) and blocks of queries (dq) share the threads.
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
