// SPDX-License-Identifier: MIT
// Gradient of attention of bfloat16 on machines that multiply pairs of it.
#pragma once

#include <algorithm>

#include <lpo/backend/cpu/attention_pairs.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// As AttentionBackward, from pairs: p and ds are rounded to bfloat16, dv^T = dout^T p and dk^T = q^T ds have the keys
/// across lanes, so that one rounding gives the right operands of both and nothing is transposed per block. A task is a
/// part of the queries of one (batch, head) pair. Parts depend on the shape alone, and their sums are added in order.
struct AttentionPairBackward {
  static constexpr index_t tasks = 32;                               ///< where the shape gives as many
  static constexpr index_t units = 2;                                ///< of 32 queries, beside a block of keys
  static constexpr index_t tiles_size = attention_pair_blocks * pair_unit_sums;

  AttentionPairs machine;
  const kernel::AttentionShape& shape;
  const bfloat16 *q, *k, *v, *out;
  const float* log_sum_exp;
  const bfloat16* dout;
  bfloat16 *dq, *dk, *dv;
  bool accumulate_q, accumulate_k, accumulate_v;
  PairMatrix of_keys{shape.keys, shape.width}, of_queries{shape.queries, shape.width};
  // Keys and values as right operands along the width, keys along the length; queries and dout as left ones both ways.
  bfloat16 *keys = nullptr, *values = nullptr, *key_rows = nullptr;
  bfloat16 *queries = nullptr, *gradients = nullptr, *query_columns = nullptr, *gradient_columns = nullptr;
  const index_t* steps[2] = {};  ///< of blocks in left operands of one and of two groups
  index_t parts = 1, part_units = 0;
  float* partial = nullptr;  ///< with several parts [pairs, parts, units of keys, 2, columns_size]: dk^T and dv^T

  void run(Context<Cpu>& ctx) {
    const index_t pairs = shape.batch * shape.heads;
    Scratch<Cpu> scratch(ctx);
    keys = scratch.allocate<bfloat16>(pairs * of_keys.along_size());
    values = scratch.allocate<bfloat16>(pairs * of_keys.along_size());
    key_rows = scratch.allocate<bfloat16>(pairs * of_keys.across_size());
    queries = scratch.allocate<bfloat16>(pairs * of_queries.along_size());
    gradients = scratch.allocate<bfloat16>(pairs * of_queries.along_size());
    query_columns = scratch.allocate<bfloat16>(pairs * of_queries.across_size());
    gradient_columns = scratch.allocate<bfloat16>(pairs * of_queries.across_size());
    const index_t most = std::max({of_keys.depth_blocks(), attention_pair_blocks, units});
    steps[0] = even_steps(scratch, most, pair_block);
    steps[1] = even_steps(scratch, most, pair_unit_block);
    const index_t* const key_offset = even_steps(scratch, shape.keys, shape.k_row);
    const index_t* const query_offset = even_steps(scratch, shape.queries, shape.q_row);
    const index_t* const gradient_offset = even_steps(scratch, shape.queries, shape.out_row);

    const index_t key_chunks = chunks(of_keys), chunks_each = key_chunks + chunks(of_queries);
    const index_t pack_grain = std::max<index_t>(1, 16384 / (attention_pair_keys * shape.width));
    ctx.executor().parallel_for(pairs * chunks_each, pack_grain, [&](index_t begin, index_t end) {
      for (index_t task = begin; task < end; ++task) {
        const index_t pair = task / chunks_each, chunk = task % chunks_each;
        if (chunk < key_chunks)
          pack_keys(pair, chunk, key_offset);
        else
          pack_queries(pair, chunk - key_chunks, query_offset, gradient_offset);
      }
    });

    const index_t all = of_queries.length_blocks();
    parts = std::clamp<index_t>((tasks + pairs - 1) / pairs, 1, std::max<index_t>(1, shape.queries / (4 * units * pair_unit)));
    part_units = (all + parts - 1) / parts;
    if (parts > 1 && (dk || dv)) partial = scratch.allocate<float>(pairs * parts * part_size());
    WorkerScratch<float> workspaces(ctx, scratch, scratch_size());
    const index_t grain = attention_grain(part_units * pair_unit * shape.keys * shape.width);
    ctx.executor().parallel_for(pairs * parts, grain, [&](index_t begin, index_t end) {
      const WorkerScratch<float>::Lease space(workspaces);
      machine.tiles->begin();
      for (index_t task = begin; task < end; ++task) run_part(task / parts, task % parts, space.data());
      machine.tiles->end();
    });
    if (!partial) return;
    ctx.executor().parallel_for(pairs * of_keys.length_blocks(), 1, [&](index_t task, index_t) {
      add_parts(task / of_keys.length_blocks(), task % of_keys.length_blocks());
    });
  }

 private:
  static index_t chunks(const PairMatrix& matrix) {
    return (matrix.length_blocks() + attention_pair_blocks - 1) / attention_pair_blocks;
  }
  index_t columns_size() const { return of_keys.column_units() * pair_unit_sums; }
  index_t part_size() const { return of_keys.length_blocks() * 2 * columns_size(); }
  index_t part_rows() const { return part_units * pair_unit; }
  /// delta and level, dq, two tiles of sums, dk^T and dv^T of a block of keys; p and ds as right operands, ds as left one.
  index_t scratch_size() const {
    return 2 * part_rows() + part_units * columns_size() + 2 * pair_unit_sums +
           (partial ? 0 : 2 * attention_pair_blocks * columns_size()) +
           (2 * units + 1) * attention_pair_blocks * pair_unit_block / 2;
  }

  const bfloat16* head(const bfloat16* data, index_t pair, index_t length, index_t row) const {
    return data + pair / shape.heads * length * row + pair % shape.heads * shape.width;
  }
  bfloat16* head(bfloat16* data, index_t pair, index_t length, index_t row) const {
    return data + pair / shape.heads * length * row + pair % shape.heads * shape.width;
  }

  void pack_keys(index_t pair, index_t chunk, const index_t* offset) const {
    const index_t first = chunk * attention_pair_blocks;
    const index_t end = std::min(of_keys.length_blocks(), first + attention_pair_blocks);
    const bfloat16* const k_head = head(k, pair, shape.keys, shape.k_row);
    const bfloat16* const v_head = head(v, pair, shape.keys, shape.v_row);
    for (index_t unit = first; unit < end; ++unit) {
      const index_t at = pair * of_keys.along_size() + of_keys.along(unit);
      of_keys.pack_along<true>(*machine.tiles, k_head, shape.k_row, unit, keys + at);
      of_keys.pack_along<true>(*machine.tiles, v_head, shape.v_row, unit, values + at);
    }
    if (dq)
      of_keys.pack_across<true>(*machine.tiles, k_head, offset, first, end - first,
                                key_rows + pair * of_keys.across_size());
  }

  void pack_queries(index_t pair, index_t chunk, const index_t* query_offset, const index_t* gradient_offset) const {
    const index_t first = chunk * attention_pair_blocks;
    const index_t end = std::min(of_queries.length_blocks(), first + attention_pair_blocks);
    const bfloat16* const q_head = head(q, pair, shape.queries, shape.q_row);
    const bfloat16* const dout_head = head(dout, pair, shape.queries, shape.out_row);
    for (index_t unit = first; unit < end; ++unit) {
      const index_t at = pair * of_queries.along_size() + of_queries.along(unit);
      of_queries.pack_along<false>(*machine.tiles, q_head, shape.q_row, unit, queries + at);
      of_queries.pack_along<false>(*machine.tiles, dout_head, shape.out_row, unit, gradients + at);
    }
    const index_t at = pair * of_queries.across_size();
    if (dk) of_queries.pack_across<false>(*machine.tiles, q_head, query_offset, first, end - first, query_columns + at);
    if (dv)
      of_queries.pack_across<false>(*machine.tiles, dout_head, gradient_offset, first, end - first,
                                    gradient_columns + at);
  }

  /// Queries from unit `first` on up to `end`.
  void run_part(index_t pair, index_t part, float* space) const {
    const index_t first = part * part_units, end = std::min(of_queries.length_blocks(), first + part_units);
    float* const level = space;
    float* const delta = level + part_rows();
    float* const dq_sum = delta + part_rows();
    if (first < end) prepare_rows(pair, first, end, level, delta);
    for (index_t tile = 0; tile < of_keys.length_blocks(); tile += attention_pair_blocks)
      run_keys(pair, part, tile, first, end, level, delta, dq_sum, dq_sum + part_units * columns_size());
    if (dq && first < end) store_dq(pair, first * pair_unit, std::min(shape.queries, end * pair_unit), dq_sum);
  }

  /// level: log sum exp in units of ln 2; delta[i] = dout_i . out_i. Both are zero behind the last query.
  void prepare_rows(index_t pair, index_t first, index_t end, float* level, float* delta) const {
    const bfloat16* const a = head(dout, pair, shape.queries, shape.out_row) + first * pair_unit * shape.out_row;
    const bfloat16* const b = head(out, pair, shape.queries, shape.out_row) + first * pair_unit * shape.out_row;
    const float* const from = log_sum_exp + pair * shape.queries + first * pair_unit;
    const index_t count = std::min(shape.queries, end * pair_unit) - first * pair_unit;
    for (index_t i = 0; i < (end - first) * pair_unit; ++i) {
      level[i] = i < count ? from[i] * static_cast<float>(log2_of_e) : 0.0f;
      delta[i] = 0.0f;
    }
    multiply_rows_with_rows(count, shape.width, a, b, shape.out_row, delta);
  }

  float* partial_sums(index_t pair, index_t part, index_t tile) const {
    return partial + (pair * parts + part) * part_size() + tile * 2 * columns_size();
  }

  /// What queries give to dk and dv of a block of keys from unit `tile` on, and these keys to dq of the queries.
  void run_keys(index_t pair, index_t part, index_t tile, index_t first, index_t end, const float* level,
                const float* delta, float* dq_sum, float* space) const {
    const index_t begin = tile * pair_unit, block = std::min(attention_pair_keys, shape.keys - begin);
    const index_t tiles = (block + pair_unit - 1) / pair_unit;
    float* const score = space;
    float* const dscore = score + pair_unit_sums;
    float* const own_sums = dscore + pair_unit_sums;
    float* const sums = partial ? partial_sums(pair, part, tile) : own_sums;  // [tiles][dk^T, dv^T]
    bfloat16* const weight =
        reinterpret_cast<bfloat16*>(partial ? own_sums : own_sums + 2 * attention_pair_blocks * columns_size());
    bfloat16* const slope = weight + units * attention_pair_blocks * pair_unit_block;
    bfloat16* const slope_rows = slope + units * attention_pair_blocks * pair_unit_block;
    const index_t from = shape.causal ? std::max(first, tile) : first;  // queries before the keys do not see them
    if (from >= end && (dk || dv)) std::fill(sums, sums + tiles * 2 * columns_size(), 0.0f);
    if (dq && from > first && tile == 0) std::fill(dq_sum, dq_sum + (from - first) * columns_size(), 0.0f);
    for (index_t unit = from; unit < end; unit += units) {
      const index_t count = std::min(units, end - unit);
      for (index_t u = 0; u < count; ++u) {
        run_scores(pair, unit + u, unit + u - first, tile, tiles, level, delta, score, dscore, u, weight, slope, slope_rows);
        if (dq) run_dq(pair, unit + u, tile, block, slope_rows, dq_sum + (unit + u - first) * columns_size());
      }
      const index_t behind = std::min(shape.queries, (unit + count) * pair_unit);
      const index_t last_pairs = (behind - (unit + count - 1) * pair_unit + 1) / 2;
      for (index_t t = 0; t < tiles; ++t) {
        const index_t panels = PairMatrix::panels(block - t * pair_unit), at = t * units * pair_unit_block;
        float* const sum = sums + t * 2 * columns_size();
        if (dk) run_columns(pair, query_columns, unit, count, last_pairs, slope + at, panels, unit > from, sum);
        if (dv)
          run_columns(pair, gradient_columns, unit, count, last_pairs, weight + at, panels, unit > from,
                      sum + columns_size());
      }
    }
    if (!partial)
      for (index_t t = 0; t < tiles; ++t) store_sums(pair, tile + t, sums + t * 2 * columns_size());
  }

  /// Weights and slopes of a unit of queries, `u` of `count`.
  void run_scores(index_t pair, index_t unit, index_t row, index_t tile, index_t tiles, const float* level,
                  const float* delta, float* score, float* dscore, index_t u, bfloat16* weight,
                  bfloat16* slope, bfloat16* slope_rows) const {
    const index_t first = unit * pair_unit, rows = std::min(pair_unit, shape.queries - first);
    const index_t groups = PairMatrix::panels(rows), at = pair * of_queries.along_size() + of_queries.along(unit);
    const PairGroups left(queries + at, pair_block, pair_depth, steps[groups - 1]);
    const PairGroups left_gradient(gradients + at, pair_block, pair_depth, steps[groups - 1]);
    const index_t computed = groups * pair_lanes;
    for (index_t t = 0; t < tiles; ++t) {
      const index_t begin = (tile + t) * pair_unit, block = std::min(pair_unit, shape.keys - begin);
      const index_t panels = PairMatrix::panels(block), key_at = pair * of_keys.along_size() + of_keys.along(tile + t);
      bfloat16* const weight_to = weight + (t * units * pair_unit_block + u * panels * pair_block);
      bfloat16* const slope_to = slope + (t * units * pair_unit_block + u * panels * pair_block);
      bfloat16* const slope_row = slope_rows + t * pair_unit_block;
      PairWork work{groups, panels, of_keys.depth_blocks(), computed, of_keys.depth_pairs(), left.group, keys + key_at,
                    score, false, nullptr, nullptr, nullptr};
      machine.tiles->run(work);
      work.left = left_gradient.group, work.right = values + key_at, work.sums = dscore;
      machine.tiles->run(work);
      machine.loops->slopes({computed, panels, static_cast<float>(shape.scale * log2_of_e), level + row * pair_unit,
                             delta + row * pair_unit, score, dscore, weight_to, slope_to, slope_row});
      if (block < panels * pair_lanes || (shape.causal && begin + block > first + 1))
        for (index_t i = 0; i < computed; ++i) {
          const index_t seen = shape.causal ? std::clamp<index_t>(first + i + 1 - begin, 0, block) : block;
          for (index_t j = seen; j < panels * pair_lanes; ++j) {
            const index_t to = j / pair_lanes * pair_block + i / 2 * pair_depth + j % pair_lanes * 2 + i % 2;
            weight_to[to] = slope_to[to] = slope_row[i * pair_depth + j] = bfloat16(0.0f);
          }
        }
    }
  }

  void run_dq(index_t pair, index_t unit, index_t tile, index_t block, const bfloat16* slope_rows, float* sum) const {
    const index_t rows = std::min(pair_unit, shape.queries - unit * pair_unit), groups = PairMatrix::panels(rows);
    const index_t blocks = (block + pair_depth - 1) / pair_depth;
    const PairGroups left(slope_rows, pair_block, pair_depth, steps[1]);
    for (index_t columns = 0; columns < of_keys.column_units(); ++columns)
      machine.tiles->run({groups, PairMatrix::panels(of_keys.columns(columns)), blocks, rows,
                          (block - (blocks - 1) * pair_depth + 1) / 2, left.group,
                          key_rows + pair * of_keys.across_size() + of_keys.across(columns, tile),
                          sum + columns * pair_unit_sums, tile > 0, nullptr, nullptr, nullptr});
  }

  /// sum[d][key] (+)= columns[d] . right[.][key] over `count` units of queries.
  void run_columns(index_t pair, const bfloat16* packed, index_t unit, index_t count, index_t last_pairs,
                   const bfloat16* right, index_t panels, bool begun, float* sum) const {
    for (index_t columns = 0; columns < of_queries.column_units(); ++columns) {
      const index_t rows = of_queries.columns(columns), groups = PairMatrix::panels(rows);
      const bfloat16* const data = packed + pair * of_queries.across_size() + of_queries.across(columns, unit);
      const bool crossed = machine.tiles->broadcasts;  // then packed as right operands
      const PairGroups left(data, pair_block, crossed ? 2 : pair_depth, steps[groups - 1], crossed ? 2 * pair_lanes : 2);
      machine.tiles->run({groups, panels, count, rows, last_pairs, left.group, right, sum + columns * pair_unit_sums,
                          begun, nullptr, nullptr, nullptr});
    }
  }

  /// Adds the parts of a unit of keys in order.
  void add_parts(index_t pair, index_t tile) const {
    const index_t size = 2 * columns_size(), count = parts, step = part_size();
    float* const sum = partial_sums(pair, 0, tile);
    with_lanes<bfloat16>([=]<class V>() __attribute__((always_inline)) {
      for (index_t part = 1; part < count; ++part)
        for (index_t at = 0; at < size; at += LaneTraits<V>::width)
          store_lanes(sum + at, load_lanes<V>(sum + at) + load_lanes<V>(sum + part * step + at));
    });
    store_sums(pair, tile, sum);
  }

  void store_sums(index_t pair, index_t tile, const float* sum) const {
    const index_t first = tile * pair_unit, count = std::min(pair_unit, shape.keys - first);
    alignas(64) float factor[pair_unit];
    for (index_t columns = 0; columns < of_keys.column_units(); ++columns, sum += pair_unit_sums) {
      const index_t at = columns * pair_unit, width = of_keys.columns(columns);
      std::fill(factor, factor + pair_unit, shape.scale);
      if (dk)
        store_columns(sum, pair_columns, factor, count, width,
                      head(dk, pair, shape.keys, shape.k_row) + first * shape.k_row + at, shape.k_row, accumulate_k);
      std::fill(factor, factor + pair_unit, 1.0f);
      if (dv)
        store_columns(sum + columns_size(), pair_columns, factor, count, width,
                      head(dv, pair, shape.keys, shape.v_row) + first * shape.v_row + at, shape.v_row, accumulate_v);
    }
  }

  void store_dq(index_t pair, index_t first, index_t end, const float* sum) const {
    bfloat16* const target = head(dq, pair, shape.queries, shape.q_row) + first * shape.q_row;
    const index_t count = end - first, width = shape.width, to = shape.q_row, size = columns_size();
    const float scale = shape.scale;
    const bool add = accumulate_q;
    with_lanes<bfloat16>([=]<class V>() __attribute__((always_inline)) {
      for (index_t i = 0; i < count; ++i) {
        const float* const from = sum + i / pair_unit * size + i % pair_unit * pair_columns;
        for_lanes<V>(
            0, width, [&](index_t d, auto lanes) __attribute__((always_inline)) {
              V value = load_lanes<V>(from + d / pair_unit * pair_unit_sums + d % pair_unit) * scale;
              if (add) value += lanes.load(target + i * to + d);
              lanes.store(target + i * to + d, value);
            });
      }
    });
  }
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
