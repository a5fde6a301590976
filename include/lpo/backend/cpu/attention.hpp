// SPDX-License-Identifier: MIT
// Attention on the CPU: streaming softmax with the queries across lanes; backward recomputes the probabilities.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <lpo/backend/cpu/attention_backward.hpp>
#include <lpo/backend/cpu/attention_tiles.hpp>
#include <lpo/backend/cpu/worker_scratch.hpp>
#include <lpo/kernel/attention.hpp>
#include <lpo/tensor/math.hpp>

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

  static void run(const kernel::AttentionShape& shape, index_t first, index_t count, const T* q, const T* k, const T* v,
                  T* out, S* log_sum_exp, S* space) {
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
      const auto k_rows = attention_rows<V>(k + begin * shape.k_row, shape.k_row, block, width, k_space);
      multiply_rows<V, Packs, false>(block, k_rows.data, k_rows.stride, 1, query, lanes, width, score, lanes);
      if (shape.causal && begin + block > first + 1) hide_later_keys(score, first, begin, block);
      unroll<Packs>([&](auto i) __attribute__((always_inline)) {
        S* const column = score + i * width_of_pack;
        V top = highest[i];
        for (index_t j = 0; j < block; ++j) top = larger(top, load_lanes<V>(column + j * lanes));
        const V shrink = exp_or_zero(highest[i] - top);
        V partial{};
        for (index_t j = 0; j < block; ++j) {
          const V p = exp_or_zero(load_lanes<V>(column + j * lanes) - top);
          store_lanes(column + j * lanes, p);
          partial += p;
        }
        sum[i] = sum[i] * shrink + partial;
        highest[i] = top;
        if (begin > 0)
          for (index_t d = 0; d < width; ++d) {
            S* const at = total + d * lanes + i * width_of_pack;
            store_lanes(at, load_lanes<V>(at) * shrink);
          }
      });
      const auto v_rows = attention_rows<V>(v + begin * shape.v_row, shape.v_row, block, width, v_space);
      if (begin == 0)
        multiply_rows<V, Packs, false>(width, v_rows.data, 1, v_rows.stride, score, lanes, block, total, lanes);
      else
        multiply_rows<V, Packs, true>(width, v_rows.data, 1, v_rows.stride, score, lanes, block, total, lanes);
    }
    for (int i = 0; i < Packs; ++i) {
      store_lanes(factor + i * width_of_pack, S(1) / sum[i]);
      store_lanes(level + i * width_of_pack, highest[i] + log(sum[i]));
    }
    store_columns<V>(total, lanes, factor, count, width, out + first * shape.out_row, shape.out_row, false);
    if (log_sum_exp) std::copy(level, level + count, log_sum_exp + first);
  }

 private:
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
    constexpr index_t lanes = detail::AttentionForward<T, 4>::lanes;
    const index_t blocks = (shape.queries + lanes - 1) / lanes;
    Scratch<Cpu> scratch(ctx);
    detail::WorkerScratch<S> workspaces(ctx, scratch, detail::AttentionForward<T, 4>::scratch_size(shape.width));
    const index_t grain = detail::attention_grain(std::min(shape.queries, lanes) * shape.keys * shape.width);
    ctx.executor().parallel_for(pairs * blocks, grain, [&](index_t begin, index_t end) {
      const typename detail::WorkerScratch<S>::Lease space(workspaces);
      for (index_t task = begin; task < end; ++task) {
        const index_t pair = task / blocks, b = pair / heads, column = pair % heads * shape.width;
        const index_t first = task % blocks * lanes, count = std::min(lanes, shape.queries - first);
        detail::with_packs<T>(count, [&](auto packs) {
          detail::AttentionForward<T, decltype(packs)::value>::run(
              shape, first, count, q + b * shape.queries * shape.q_row + column,
              k + b * shape.keys * shape.k_row + column, v + b * shape.keys * shape.v_row + column,
              out + b * shape.queries * shape.out_row + column,
              log_sum_exp ? log_sum_exp + pair * shape.queries : nullptr, space.data());
        });
      }
    });
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
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
