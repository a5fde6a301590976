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
/// takes block after block of keys, finishes dq of its queries, and leaves sums towards dk and dv. Parts depend on the
/// shape alone, and their sums are added in order.
template <class T>
struct AttentionBackward {
  using V = lanes_t<T>;
  using S = compute_t<T>;
  static constexpr index_t tasks = 32;  ///< where the shape gives as many: twice the threads of a usual machine

  const kernel::AttentionShape& shape;
  const T *q, *k, *v, *out;
  const S* log_sum_exp;
  const T* dout;
  T *dq, *dk, *dv;
  bool accumulate_q, accumulate_k, accumulate_v;
  const index_t most_lanes = attention_lanes<T>();
  const S *q_packed = nullptr, *dout_packed = nullptr;
  index_t parts = 1, part_rows = 0, key_blocks = 0;
  S* partial = nullptr;  ///< with several parts [pairs, parts, key_blocks, 2, width, most_lanes]: dk and dv

  void run(Context<Cpu>& ctx) {
    const index_t pairs = shape.batch * shape.heads, width = shape.width;
    if (pairs == 0 || width == 0) return;
    Scratch<Cpu> scratch(ctx);
    S* const delta = scratch.allocate<S>(pairs * shape.queries);
    sum_rows(ctx, delta);
    key_blocks = (shape.keys + most_lanes - 1) / most_lanes;
    if (key_blocks > 1 && (shape.heads > 1 || !std::is_same_v<T, S>)) {
      q_packed = pack_heads<S>(ctx, scratch, shape.batch, shape.queries, shape.heads, width, q, shape.q_row, width);
      dout_packed = pack_heads<S>(ctx, scratch, shape.batch, shape.queries, shape.heads, width, dout, shape.out_row,
                                     width);
    }
    parts = std::clamp<index_t>((tasks + pairs - 1) / pairs, 1,
                                std::max<index_t>(1, shape.queries / (2 * attention_block)));
    part_rows = (shape.queries + parts - 1) / parts;
    if (parts > 1 && (dk || dv)) partial = scratch.allocate<S>(pairs * parts * key_blocks * 2 * width * most_lanes);
    const index_t block_space = (4 * width + 2 * attention_block + 1) * most_lanes + 2 * attention_block * width;
    WorkerScratch<S> workspaces(ctx, scratch, block_space + (dq ? (part_rows + most_lanes) * padded<V>(width) : 0));
    ctx.executor().parallel_for(
        pairs * parts, attention_grain(2 * part_rows * padded<V>(shape.keys) * width), [&](index_t begin, index_t end) {
          const typename WorkerScratch<S>::Lease space(workspaces);
          for (index_t task = begin; task < end; ++task) {
            const index_t row = task % parts * part_rows, row_end = std::min(shape.queries, row + part_rows);
            S* const dq_sum = dq ? space.data() + block_space : nullptr;
            if (dq) std::fill(dq_sum, dq_sum + (row_end - row) * padded<V>(width), S(0));
            for (index_t block = 0; block < key_blocks; ++block)
              key_lanes(task, block, row, row_end, delta, space.data(), dq_sum);
            if (dq) store_dq(task / parts, row, row_end, dq_sum);
          }
        });
    if (partial) ctx.executor().parallel_for(pairs * key_blocks, 1, [&](index_t task, index_t) { add_parts(task); });
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

  S* partial_sums(index_t pair, index_t part, index_t block) const {
    return partial + ((pair * parts + part) * key_blocks + block) * 2 * shape.width * most_lanes;
  }

  /// What the queries [query, query_end) give to dk and dv of a block of keys, one key per lane, and what these keys
  /// give to dq of the queries where `dq_sum` is given.
  void key_lanes(index_t task, index_t key_block, index_t query, index_t query_end, const S* deltas, S* space,
                 S* dq_sum) const {
    const index_t pair = task / parts, first = key_block * most_lanes;
    const index_t count = std::min(most_lanes, shape.keys - first), lanes = lanes_for<T>(count);
    const S* const delta = deltas + pair * shape.queries;
    const index_t width = shape.width, row = padded<V>(width);
    S* const key = space;
    S* const value = key + width * lanes;
    S* const dkey = partial ? partial_sums(pair, task % parts, key_block) : value + width * lanes;
    S* const dvalue = dkey + width * lanes;
    S* const p = value + 3 * width * lanes;
    S* const ds = p + attention_block * lanes;
    S* const factor = ds + attention_block * lanes;
    S* const q_space = factor + lanes;
    S* const dout_space = q_space + attention_block * width;
    S* const key_rows = dq_sum ? dq_sum + part_rows * row : nullptr;
    const T* const k_first = k + key_at(pair, first, shape.k_row);
    const bool slopes = dk || dq_sum;
    load_columns(k_first, shape.k_row, count, width, static_cast<S>(shape.scale * log2_of_e), key, lanes);
    if (slopes) load_columns(v + key_at(pair, first, shape.v_row), shape.v_row, count, width, S(1), value, lanes);
    if (dk) std::fill(dkey, dkey + width * lanes, S(0));
    if (dv) std::fill(dvalue, dvalue + width * lanes, S(0));
    if (key_rows) pad_rows(k_first, count, key_rows);
    const S* const level = log_sum_exp + pair * shape.queries;

    for (index_t begin = shape.causal ? std::max(query, first) : query; begin < query_end; begin += attention_block) {
      const index_t block = std::min(attention_block, query_end - begin);
      const auto q_rows = attention_rows(q_packed, pair * shape.queries + begin, q + query_at(pair, begin, shape.q_row),
                                         shape.q_row, block, width, q_space);
      const auto dout_rows =
          attention_rows(dout_packed, pair * shape.queries + begin, dout + query_at(pair, begin, shape.out_row),
                         shape.out_row, block, width, dout_space);
      multiply_rows<false>(block, lanes, q_rows.data, q_rows.stride, 1, key, lanes, width, p, lanes);
      if (slopes)
        multiply_rows<false>(block, lanes, dout_rows.data, dout_rows.stride, 1, value, lanes, width, ds, lanes);
      with_lanes<T>([&]<class W>() __attribute__((always_inline)) {
        for (index_t i = 0; i < block; ++i) {
          const S base = level[begin + i] * static_cast<S>(log2_of_e), offset = delta[begin + i];
          S* const row_p = p + i * lanes;
          S* const row_ds = ds + i * lanes;
          for (index_t lane = 0; lane < lanes; lane += LaneTraits<W>::width) {
            const W probability = exp2_above(load_lanes<W>(row_p + lane) - base);
            store_lanes(row_p + lane, probability);
            if (slopes) store_lanes(row_ds + lane, probability * (load_lanes<W>(row_ds + lane) - offset));
          }
        }
      });
      if (shape.causal)  // a query does not see the keys after its own
        for (index_t i = 0; i < block; ++i)
          for (index_t lane = std::max<index_t>(0, begin + i + 1 - first); lane < lanes; ++lane)
            p[i * lanes + lane] = ds[i * lanes + lane] = S(0);
      if (dv) multiply_rows<true>(width, lanes, dout_rows.data, 1, dout_rows.stride, p, lanes, block, dvalue, lanes);
      if (dk) multiply_rows<true>(width, lanes, q_rows.data, 1, q_rows.stride, ds, lanes, block, dkey, lanes);
      if (dq_sum)
        multiply_rows<true>(block, row, ds, lanes, 1, key_rows, row, count, dq_sum + (begin - query) * row, row);
    }
    if (!partial) store_sums(pair, first, dkey, dvalue, factor);
  }

  /// Adds the parts of a block of keys in order.
  void add_parts(index_t task) const {
    const index_t pair = task / key_blocks, block = task % key_blocks, first = block * most_lanes;
    const index_t size = 2 * shape.width * lanes_for<T>(std::min(most_lanes, shape.keys - first));
    S* const sum = partial_sums(pair, 0, block);
    with_lanes<T>([&]<class W>() __attribute__((always_inline)) {
      for (index_t part = 1; part < parts; ++part) {
        const S* const more = partial_sums(pair, part, block);
        for (index_t at = 0; at < size; at += LaneTraits<W>::width)
          store_lanes(sum + at, load_lanes<W>(sum + at) + load_lanes<W>(more + at));
      }
    });
    S factor[4 * 64 / sizeof(float)];
    store_sums(pair, first, sum, sum + size / 2, factor);
  }

  void store_sums(index_t pair, index_t first, const S* dkey, const S* dvalue, S* factor) const {
    const index_t count = std::min(most_lanes, shape.keys - first), lanes = lanes_for<T>(count);
    std::fill(factor, factor + lanes, static_cast<S>(shape.scale));
    if (dk)
      store_columns(dkey, lanes, factor, count, shape.width, dk + key_at(pair, first, shape.k_row), shape.k_row,
                    accumulate_k);
    std::fill(factor, factor + lanes, S(1));
    if (dv)
      store_columns(dvalue, lanes, factor, count, shape.width, dv + key_at(pair, first, shape.v_row), shape.v_row,
                    accumulate_v);
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

  void store_dq(index_t pair, index_t first, index_t last, const S* dq_sum) const {
    const index_t row = padded<V>(shape.width);
    const S scale = static_cast<S>(shape.scale);
    for (index_t i = first; i < last; ++i) {
      T* const target = dq + query_at(pair, i, shape.q_row);
      for_lanes<V>(
          0, shape.width, [&](index_t at, auto lanes) __attribute__((always_inline)) {
            V value = load_lanes<V>(dq_sum + (i - first) * row + at) * scale;
            if (accumulate_q) value += lanes.load(target + at);
            lanes.store(target + at, value);
          });
    }
  }
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
