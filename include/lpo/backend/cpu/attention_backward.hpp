// SPDX-License-Identifier: MIT
// Gradient of attention on the CPU: probabilities recomputed per block of keys that lies across lanes.
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

/// p = exp(scale q k^T - log_sum_exp), dp = dout v^T, ds = p (dp - delta) with delta_i = dout_i . out_i;
/// dv = p^T dout, dq = scale ds k, dk = scale ds^T q. A task is a part of the queries of one (batch, head) pair: it
/// takes block after block of keys, one key per lane, finishes dq of its queries, and leaves sums towards dk and dv.
/// Parts depend on the shape alone, and their sums are added in order.
template <class T>
struct AttentionBackward {
  using S = compute_t<T>;
  static constexpr index_t tasks = 32;  ///< where the shape gives as many: twice the threads of a usual machine
  static constexpr index_t rows = 96;   ///< queries of a block of scores

  const kernel::AttentionShape& shape;
  const T *q, *k, *v, *out;
  const S* log_sum_exp;
  const T* dout;
  T *dq, *dk, *dv;
  bool accumulate_q, accumulate_k, accumulate_v;
  const index_t row = lanes_for<T>(shape.width);                      ///< of key_rows and of sums towards dq
  const index_t lanes_size = lanes_for<T>(shape.keys) * shape.width;  ///< of the keys of a pair across lanes
  const S *keys = nullptr, *values = nullptr, *key_rows = nullptr, *q_packed = nullptr, *dout_packed = nullptr;
  index_t parts = 1, part_rows = 0;
  S* partial = nullptr;  ///< with several parts [pairs, parts, 2, lanes_size]: dk and dv

  void run(Context<Cpu>& ctx) {
    const index_t pairs = shape.batch * shape.heads, width = shape.width;
    if (pairs == 0 || width == 0) return;
    Scratch<Cpu> scratch(ctx);
    if (shape.keys > 0) {
      keys = keys_across_lanes<S>(ctx, scratch, shape, k, shape.k_row, static_cast<S>(shape.scale * log2_of_e));
      values = keys_across_lanes<S>(ctx, scratch, shape, v, shape.v_row, S(1));
    }
    if (dq) key_rows = pack_heads<S>(ctx, scratch, shape.batch, shape.keys, shape.heads, width, k, shape.k_row, row);
    if (shape.keys > attention_block && (shape.heads > 1 || !std::is_same_v<T, S>)) {
      q_packed =
          pack_heads<S>(ctx, scratch, shape.batch, shape.queries, shape.heads, width, q, shape.q_row, width);
      dout_packed =
          pack_heads<S>(ctx, scratch, shape.batch, shape.queries, shape.heads, width, dout, shape.out_row, width);
    }
    parts = std::clamp<index_t>((tasks + pairs - 1) / pairs, 1, std::max<index_t>(1, shape.queries / (2 * rows)));
    part_rows = (shape.queries + parts - 1) / parts;
    if (parts > 1 && (dk || dv)) partial = scratch.allocate<S>(pairs * parts * 2 * lanes_size);
    const index_t block_space = (2 * rows + 2 * width + 1) * attention_block + 2 * rows * width;
    WorkerScratch<S> workspaces(ctx, scratch, part_rows * (1 + row) + block_space);
    ctx.executor().parallel_for(
        pairs * parts, attention_grain(2 * part_rows * lanes_for<T>(shape.keys) * width),
        [&](index_t begin, index_t end) {
          const typename WorkerScratch<S>::Lease space(workspaces);
          for (index_t task = begin; task < end; ++task) run_part(task / parts, task % parts, space.data());
        });
    if (!partial) return;
    const index_t blocks = (shape.keys + attention_block - 1) / attention_block;
    ctx.executor().parallel_for(pairs * blocks, 1, [&](index_t task, index_t) {
      add_parts(task / blocks, task % blocks * attention_block);
    });
  }

 private:
  index_t query_at(index_t pair, index_t i, index_t stride) const {
    return (pair / shape.heads * shape.queries + i) * stride + pair % shape.heads * shape.width;
  }
  index_t key_at(index_t pair, index_t j, index_t stride) const {
    return (pair / shape.heads * shape.keys + j) * stride + pair % shape.heads * shape.width;
  }

  void run_part(index_t pair, index_t part, S* space) const {
    const index_t query = part * part_rows, query_end = std::min(shape.queries, query + part_rows);
    S* const delta = space;
    S* const dq_sum = dq ? delta + part_rows : nullptr;
    sum_rows(pair, query, query_end, delta);
    if (dq && shape.keys == 0) std::fill(dq_sum, dq_sum + part_rows * row, S(0));
    for (index_t first = 0; first < shape.keys; first += attention_block)
      key_lanes(pair, part, first, query, query_end, delta, delta + part_rows * (1 + row), dq_sum);
    if (dq) store_dq(pair, query, query_end, dq_sum);
  }

  /// delta[i - query] = dout_i . out_i
  void sum_rows(index_t pair, index_t query, index_t query_end, S* delta) const {
    const T* const a = dout + query_at(pair, query, shape.out_row);
    const T* const b = out + query_at(pair, query, shape.out_row);
    multiply_rows_with_rows(query_end - query, shape.width, a, b, shape.out_row, delta);
  }

  S* partial_sums(index_t pair, index_t part, index_t first) const {
    return partial + (pair * parts + part) * 2 * lanes_size + 2 * first * shape.width;
  }

  /// What the queries [query, query_end) give to dk and dv of a block of keys, and what these keys give to dq of the
  /// queries where `dq_sum` is given.
  void key_lanes(index_t pair, index_t part, index_t first, index_t query, index_t query_end, const S* delta, S* space,
                 S* dq_sum) const {
    const index_t width = shape.width, columns = padded<lanes_t<T>>(width);
    const index_t count = std::min(attention_block, shape.keys - first), lanes = lanes_for<T>(count);
    const S* const key = keys + pair * lanes_size + first * width;
    const S* const value = values + pair * lanes_size + first * width;
    const S* const key_row = dq_sum ? key_rows + (pair * shape.keys + first) * row : nullptr;
    S* const p = space;
    S* const ds = p + rows * attention_block;
    S* const q_space = ds + rows * attention_block;
    S* const dout_space = q_space + rows * width;
    S* const factor = dout_space + rows * width;
    S* const dkey = partial ? partial_sums(pair, part, first) : factor + attention_block;
    S* const dvalue = dkey + width * lanes;
    const bool slopes = dk || dq_sum;
    if (dk) std::fill(dkey, dkey + width * lanes, S(0));
    if (dv) std::fill(dvalue, dvalue + width * lanes, S(0));

    for (index_t begin = shape.causal ? std::max(query, first) : query; begin < query_end; begin += rows) {
      const index_t block = std::min(rows, query_end - begin);
      const auto q_rows = attention_rows(q_packed, pair * shape.queries + begin, q + query_at(pair, begin, shape.q_row),
                                         shape.q_row, block, width, q_space);
      const auto dout_rows =
          attention_rows(dout_packed, pair * shape.queries + begin, dout + query_at(pair, begin, shape.out_row),
                         shape.out_row, block, width, dout_space);
      multiply_rows<false>(block, lanes, q_rows.data, q_rows.stride, 1, key, lanes, width, p, lanes);
      if (slopes)
        multiply_rows<false>(block, lanes, dout_rows.data, dout_rows.stride, 1, value, lanes, width, ds, lanes);
      const S* const level = log_sum_exp + pair * shape.queries + begin;
      const S* const offset = delta + (begin - query);
      with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
        for (index_t i = 0; i < block; ++i) {
          const S base = level[i] * static_cast<S>(log2_of_e), less = offset[i];
          S* const row_p = p + i * lanes;
          S* const row_ds = ds + i * lanes;
          for (index_t lane = 0; lane < lanes; lane += LaneTraits<V>::width) {
            const V probability = exp2_above(load_lanes<V>(row_p + lane) - base);
            store_lanes(row_p + lane, probability);
            if (slopes) store_lanes(row_ds + lane, probability * (load_lanes<V>(row_ds + lane) - less));
          }
        }
      });
      if (shape.causal)  // a query does not see the keys after its own
        for (index_t i = 0; i < block; ++i)
          for (index_t lane = std::max<index_t>(0, begin + i + 1 - first); lane < lanes; ++lane)
            p[i * lanes + lane] = ds[i * lanes + lane] = S(0);
      if (dv) multiply_rows<true>(width, lanes, dout_rows.data, 1, dout_rows.stride, p, lanes, block, dvalue, lanes);
      if (dk) multiply_rows<true>(width, lanes, q_rows.data, 1, q_rows.stride, ds, lanes, block, dkey, lanes);
      if (dq_sum == nullptr) continue;
      S* const sum = dq_sum + (begin - query) * row;
      if (first == 0)
        multiply_rows<false>(block, columns, ds, lanes, 1, key_row, row, count, sum, row);
      else
        multiply_rows<true>(block, columns, ds, lanes, 1, key_row, row, count, sum, row);
    }
    if (!partial) store_sums(pair, first, dkey, dvalue, factor);
  }

  /// Adds the parts of a block of keys in order.
  void add_parts(index_t pair, index_t first) const {
    const index_t size = 2 * shape.width * lanes_for<T>(std::min(attention_block, shape.keys - first));
    const index_t count = parts, step = 2 * lanes_size;
    S* const sum = partial_sums(pair, 0, first);
    with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
      for (index_t part = 1; part < count; ++part)
        for (index_t at = 0; at < size; at += LaneTraits<V>::width)
          store_lanes(sum + at, load_lanes<V>(sum + at) + load_lanes<V>(sum + part * step + at));
    });
    S factor[attention_block + 64 / sizeof(S)];
    store_sums(pair, first, sum, sum + size / 2, factor);
  }

  void store_sums(index_t pair, index_t first, const S* dkey, const S* dvalue, S* factor) const {
    const index_t count = std::min(attention_block, shape.keys - first), lanes = lanes_for<T>(count);
    std::fill(factor, factor + lanes, static_cast<S>(shape.scale));
    if (dk)
      store_columns(dkey, lanes, factor, count, shape.width, dk + key_at(pair, first, shape.k_row), shape.k_row,
                    accumulate_k);
    std::fill(factor, factor + lanes, S(1));
    if (dv)
      store_columns(dvalue, lanes, factor, count, shape.width, dv + key_at(pair, first, shape.v_row), shape.v_row,
                    accumulate_v);
  }

  void store_dq(index_t pair, index_t query, index_t query_end, const S* dq_sum) const {
    T* const target = dq + query_at(pair, query, shape.q_row);
    const index_t count = query_end - query, width = shape.width, from = row, to = shape.q_row;
    const S scale = static_cast<S>(shape.scale);
    const bool add = accumulate_q;
    with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
      for (index_t i = 0; i < count; ++i)
        for_lanes<V>(
            0, width, [&](index_t at, auto lanes) __attribute__((always_inline)) {
              V value = load_lanes<V>(dq_sum + i * from + at) * scale;
              if (add) value += lanes.load(target + i * to + at);
              lanes.store(target + i * to + at, value);
            });
    });
  }
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
