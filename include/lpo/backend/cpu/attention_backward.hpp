// SPDX-License-Identifier: MIT
// Gradient of attention on the CPU: probabilities recomputed per block of keys (or queries) that lies across lanes.
#pragma once

#include <algorithm>
#include <type_traits>

#include <lpo/backend/cpu/attention_tiles.hpp>
#include <lpo/backend/cpu/lane_math.hpp>
#include <lpo/backend/cpu/worker_scratch.hpp>
#include <lpo/kernel/attention.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Rows of a block of scores: with 64 lanes it stays in the first-level cache.
inline constexpr index_t attention_block = 96;

/// Tasks per chunk, so that a chunk is large against handing it out.
inline index_t attention_grain(index_t products) {
  return std::max<index_t>(1, (index_t{1} << 18) / std::max<index_t>(1, products));
}

/// Packs of a block of queries or keys: narrow packs are many, because products run in the machine's registers.
template <class T>
inline constexpr int attention_packs = std::is_same_v<lanes_t<T>, Pack> ? std::max(4, 32 / pack_width) : 4;

/// Calls body(integral_constant<int, packs>) with the fewest packs (1, 2, 4 or attention_packs) that hold `count` lanes.
template <class T, class Body>
void with_packs(index_t count, Body&& body) {
  constexpr index_t width = LaneTraits<lanes_t<T>>::width;
  if (count <= width)
    body(std::integral_constant<int, 1>{});
  else if (count <= 2 * width)
    body(std::integral_constant<int, 2>{});
  else if (count <= 4 * width)
    body(std::integral_constant<int, 4>{});
  else if constexpr (attention_packs<T> > 4)
    body(std::integral_constant<int, attention_packs<T>>{});
}

/// p = exp(scale q k^T - log_sum_exp), dp = dout v^T, ds = p (dp - delta) with delta_i = dout_i . out_i;
/// dv = p^T dout, dq = scale ds k, dk = scale ds^T q.
template <class T>
struct AttentionBackward {
  using V = lanes_t<T>;
  using S = compute_t<T>;
  static constexpr index_t width_of_pack = LaneTraits<V>::width;
  static constexpr index_t most_lanes = attention_packs<T> * width_of_pack;
  static constexpr index_t many_pairs = 8;

  const kernel::AttentionShape& shape;
  const T *q, *k, *v, *out;
  const S* log_sum_exp;
  const T* dout;
  T *dq, *dk, *dv;
  bool accumulate_q, accumulate_k, accumulate_v;
  const S *q_packed = nullptr, *k_packed = nullptr, *v_packed = nullptr, *dout_packed = nullptr;

  void run(Context<Cpu>& ctx) {
    const index_t pairs = shape.batch * shape.heads, width = shape.width;
    if (pairs == 0 || width == 0) return;
    const index_t products = shape.queries * shape.keys * width;
    Scratch<Cpu> scratch(ctx);
    S* const delta = scratch.allocate<S>(pairs * shape.queries);
    sum_rows(ctx, delta);
    const index_t query_blocks = (shape.queries + most_lanes - 1) / most_lanes;
    const index_t key_blocks = (shape.keys + most_lanes - 1) / most_lanes;
    const bool whole_pairs = pairs >= many_pairs || products <= (index_t{1} << 18);
    const bool strided = shape.heads > 1 || !std::is_same_v<T, S>;
    if (strided && key_blocks > 1) {
      q_packed = pack_heads<S>(ctx, scratch, shape.batch, shape.queries, shape.heads, width, q, shape.q_row);
      dout_packed = pack_heads<S>(ctx, scratch, shape.batch, shape.queries, shape.heads, width, dout, shape.out_row);
    }
    if (strided && query_blocks > 1 && dq && !whole_pairs) {
      k_packed = pack_heads<S>(ctx, scratch, shape.batch, shape.keys, shape.heads, width, k, shape.k_row);
      v_packed = pack_heads<S>(ctx, scratch, shape.batch, shape.keys, shape.heads, width, v, shape.v_row);
    }
    const index_t block_space = (4 * width + 2 * attention_block + 3) * most_lanes + 2 * attention_block * width;
    const index_t pair_space = whole_pairs && dq ? (shape.queries + most_lanes) * padded<V>(width) : 0;
    WorkerScratch<S> workspaces(ctx, scratch, block_space + pair_space);
    using Lease = typename WorkerScratch<S>::Lease;
    if (whole_pairs) {
      ctx.executor().parallel_for(pairs, attention_grain(2 * shape.queries * padded<V>(shape.keys) * width),
                                  [&](index_t begin, index_t end) {
                                    const Lease space(workspaces);
                                    S* const dq_sum = dq ? space.data() + block_space : nullptr;
                                    for (index_t pair = begin; pair < end; ++pair) {
                                      if (dq) std::fill(dq_sum, dq_sum + shape.queries * padded<V>(width), S(0));
                                      for (index_t block = 0; block < key_blocks; ++block)
                                        key_block(pair, block * most_lanes, delta, space.data(), dq_sum);
                                      if (dq) store_dq(pair, dq_sum);
                                    }
                                  });
      return;
    }
    if (dk || dv)
      ctx.executor().parallel_for(pairs * key_blocks, 1, [&](index_t task, index_t) {
        const Lease space(workspaces);
        key_block(task / key_blocks, task % key_blocks * most_lanes, delta, space.data(), nullptr);
      });
    if (dq)
      ctx.executor().parallel_for(pairs * query_blocks, 1, [&](index_t task, index_t) {
        const Lease space(workspaces);
        query_block(task / query_blocks, task % query_blocks * most_lanes, delta, space.data());
      });
  }

 private:
  index_t query_at(index_t pair, index_t i, index_t row) const {
    return (pair / shape.heads * shape.queries + i) * row + pair % shape.heads * shape.width;
  }
  index_t key_at(index_t pair, index_t j, index_t row) const {
    return (pair / shape.heads * shape.keys + j) * row + pair % shape.heads * shape.width;
  }

  /// delta[pair][i] = dout_i . out_i
  void sum_rows(Context<Cpu>& ctx, S* delta) const {
    const index_t heads = shape.heads, width = shape.width;
    const index_t grain = std::max<index_t>(1, 16384 / (heads * width));
    ctx.executor().parallel_for(shape.batch * shape.queries, grain, [&](index_t begin, index_t end) {
      for (index_t row = begin; row < end; ++row)
        for (index_t head = 0; head < heads; ++head) {
          const index_t at = row * shape.out_row + head * width;
          V sum{};
          for_lanes<V>(
              at, at + width, [&](index_t d, auto lanes) __attribute__((always_inline)) {
                sum += lanes.load(dout + d) * lanes.load(out + d);
              });
          delta[(row / shape.queries * heads + head) * shape.queries + row % shape.queries] = lane_sum(sum);
        }
    });
  }

  void key_block(index_t pair, index_t first, const S* delta, S* space, S* dq_sum) const {
    const index_t count = std::min(most_lanes, shape.keys - first);
    with_packs<T>(count, [&](auto packs) {
      key_lanes<decltype(packs)::value>(pair, first, count, delta + pair * shape.queries, space, dq_sum);
    });
  }

  void query_block(index_t pair, index_t first, const S* delta, S* space) const {
    const index_t count = std::min(most_lanes, shape.queries - first);
    with_packs<T>(count, [&](auto packs) {
      query_lanes<decltype(packs)::value>(pair, first, count, delta + pair * shape.queries, space);
    });
  }

  /// dk and dv of the keys [first, first + count), one key per lane, and their part of dq where `dq_sum` is given.
  template <int Packs>
  void key_lanes(index_t pair, index_t first, index_t count, const S* delta, S* space, S* dq_sum) const {
    constexpr index_t lanes = Packs * width_of_pack;
    const index_t width = shape.width, row = padded<V>(width);
    S* const key = space;
    S* const value = key + width * lanes;
    S* const dkey = value + width * lanes;
    S* const dvalue = dkey + width * lanes;
    S* const p = dvalue + width * lanes;
    S* const ds = p + attention_block * lanes;
    S* const factor = ds + attention_block * lanes;
    S* const q_space = factor + lanes;
    S* const dout_space = q_space + attention_block * width;
    S* const key_rows = dq_sum ? dq_sum + shape.queries * row : nullptr;
    const T* const k_first = k + key_at(pair, first, shape.k_row);
    const bool slopes = dk || dq_sum;
    load_columns<V>(k_first, shape.k_row, count, width, static_cast<S>(shape.scale), key, lanes);
    if (slopes) load_columns<V>(v + key_at(pair, first, shape.v_row), shape.v_row, count, width, S(1), value, lanes);
    if (dk) std::fill(dkey, dkey + width * lanes, S(0));
    if (dv) std::fill(dvalue, dvalue + width * lanes, S(0));
    if (key_rows) pad_rows(k_first, count, key_rows);
    const S* const level = log_sum_exp + pair * shape.queries;

    for (index_t begin = shape.causal ? first : 0; begin < shape.queries; begin += attention_block) {
      const index_t block = std::min(attention_block, shape.queries - begin);
      const auto q_rows = attention_rows<V>(q_packed, pair * shape.queries + begin,
                                            q + query_at(pair, begin, shape.q_row), shape.q_row, block, width, q_space);
      const auto dout_rows =
          attention_rows<V>(dout_packed, pair * shape.queries + begin, dout + query_at(pair, begin, shape.out_row),
                            shape.out_row, block, width, dout_space);
      multiply_rows<V, false>(block, lanes, q_rows.data, q_rows.stride, 1, key, lanes, width, p, lanes);
      if (slopes)
        multiply_rows<V, false>(block, lanes, dout_rows.data, dout_rows.stride, 1, value, lanes, width, ds, lanes);
      for (index_t i = 0; i < block; ++i)
        unroll<Packs>([&](auto part) __attribute__((always_inline)) {
          const index_t at = i * lanes + part * width_of_pack;
          V probability = exp_or_zero(load_lanes<V>(p + at) - level[begin + i]);
          if (shape.causal) {
            const V key_number = lane_numbers<V>() + static_cast<S>(first + part * width_of_pack);
            probability = select(key_number > broadcast_lanes<V>(static_cast<S>(begin + i)), V{}, probability);
          }
          store_lanes(p + at, probability);
          if (slopes) store_lanes(ds + at, probability * (load_lanes<V>(ds + at) - delta[begin + i]));
        });
      if (dv) multiply_rows<V, true>(width, lanes, dout_rows.data, 1, dout_rows.stride, p, lanes, block, dvalue, lanes);
      if (dk) multiply_rows<V, true>(width, lanes, q_rows.data, 1, q_rows.stride, ds, lanes, block, dkey, lanes);
      if (dq_sum) multiply_rows<V, true>(block, row, ds, lanes, 1, key_rows, row, count, dq_sum + begin * row, row);
    }
    std::fill(factor, factor + lanes, static_cast<S>(shape.scale));
    if (dk)
      store_columns<V>(dkey, lanes, factor, count, width, dk + key_at(pair, first, shape.k_row), shape.k_row,
                       accumulate_k);
    std::fill(factor, factor + lanes, S(1));
    if (dv)
      store_columns<V>(dvalue, lanes, factor, count, width, dv + key_at(pair, first, shape.v_row), shape.v_row,
                       accumulate_v);
  }

  /// dq of the queries [first, first + count), one query per lane.
  template <int Packs>
  void query_lanes(index_t pair, index_t first, index_t count, const S* delta, S* space) const {
    constexpr index_t lanes = Packs * width_of_pack;
    const index_t width = shape.width;
    S* const query = space;
    S* const slope = query + width * lanes;
    S* const dquery = slope + width * lanes;
    S* const score = dquery + width * lanes;
    S* const ds = score + attention_block * lanes;
    S* const level = ds + attention_block * lanes;
    S* const offset = level + lanes;
    S* const factor = offset + lanes;
    S* const k_space = factor + lanes;
    S* const v_space = k_space + attention_block * width;
    load_columns<V>(q + query_at(pair, first, shape.q_row), shape.q_row, count, width, static_cast<S>(shape.scale),
                    query, lanes);
    load_columns<V>(dout + query_at(pair, first, shape.out_row), shape.out_row, count, width, S(1), slope, lanes);
    std::fill(dquery, dquery + width * lanes, S(0));
    std::fill(level, level + 2 * lanes, S(0));
    std::copy(log_sum_exp + pair * shape.queries + first, log_sum_exp + pair * shape.queries + first + count, level);
    std::copy(delta + first, delta + first + count, offset);

    const index_t keys = shape.causal ? std::min(shape.keys, first + count) : shape.keys;
    for (index_t begin = 0; begin < keys; begin += attention_block) {
      const index_t block = std::min(attention_block, keys - begin);
      const auto k_rows = attention_rows<V>(k_packed, pair * shape.keys + begin, k + key_at(pair, begin, shape.k_row),
                                            shape.k_row, block, width, k_space);
      const auto v_rows = attention_rows<V>(v_packed, pair * shape.keys + begin, v + key_at(pair, begin, shape.v_row),
                                            shape.v_row, block, width, v_space);
      multiply_rows<V, false>(block, lanes, k_rows.data, k_rows.stride, 1, query, lanes, width, score, lanes);
      multiply_rows<V, false>(block, lanes, v_rows.data, v_rows.stride, 1, slope, lanes, width, ds, lanes);
      for (index_t j = 0; j < block; ++j)
        unroll<Packs>([&](auto part) __attribute__((always_inline)) {
          const index_t lane = part * width_of_pack, at = j * lanes + lane;
          V probability = exp_or_zero(load_lanes<V>(score + at) - load_lanes<V>(level + lane));
          if (shape.causal) {
            const V query_number = lane_numbers<V>() + static_cast<S>(first + lane);
            probability = select(query_number < broadcast_lanes<V>(static_cast<S>(begin + j)), V{}, probability);
          }
          store_lanes(ds + at, probability * (load_lanes<V>(ds + at) - load_lanes<V>(offset + lane)));
        });
      multiply_rows<V, true>(width, lanes, k_rows.data, 1, k_rows.stride, ds, lanes, block, dquery, lanes);
    }
    std::fill(factor, factor + lanes, static_cast<S>(shape.scale));
    store_columns<V>(dquery, lanes, factor, count, width, dq + query_at(pair, first, shape.q_row), shape.q_row,
                     accumulate_q);
  }

  /// Keys as rows of whole packs, the right operand of ds k.
  void pad_rows(const T* k_first, index_t count, S* key_rows) const {
    const index_t row = padded<V>(shape.width);
    for (index_t j = 0; j < count; ++j)
      for_lanes<V>(
          0, shape.width, [&](index_t at, auto lanes) __attribute__((always_inline)) {
            store_lanes(key_rows + j * row + at, lanes.load(k_first + j * shape.k_row + at));
          });
  }

  void store_dq(index_t pair, const S* dq_sum) const {
    const index_t row = padded<V>(shape.width);
    const S scale = static_cast<S>(shape.scale);
    for (index_t i = 0; i < shape.queries; ++i) {
      T* const target = dq + query_at(pair, i, shape.q_row);
      for_lanes<V>(
          0, shape.width, [&](index_t at, auto lanes) __attribute__((always_inline)) {
            V value = load_lanes<V>(dq_sum + i * row + at) * scale;
            if (accumulate_q) value += lanes.load(target + at);
            lanes.store(target + at, value);
          });
    }
  }
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
