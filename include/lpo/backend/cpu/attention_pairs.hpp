// SPDX-License-Identifier: MIT
// Attention of bfloat16 on machines that multiply pairs of it: what forward and backward share, and forward.
//
// Tiles are those of products (bfloat16_tile.hpp): 32 queries by 32 keys, or by 32 of the width, at a time. Products of
// two bfloat16 are exact, sums and the softmax are float; weights are rounded to bfloat16 for their product with the
// values and summed before that (as the CUDA kernels do), and so are the slopes of the scores in backward. Queries and
// keys are multiplied as they are: the scale goes into the float scores. Subnormal operands count as zero.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include <lpo/backend/cpu/attention_tiles.hpp>
#include <lpo/backend/cpu/bfloat16_tile.hpp>
#include <lpo/backend/cpu/lane_math.hpp>
#include <lpo/backend/cpu/product_pack.hpp>
#include <lpo/backend/cpu/worker_scratch.hpp>
#include <lpo/kernel/attention.hpp>
#include <lpo/tensor/math.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

inline constexpr index_t pair_unit = pair_together * pair_lanes;      ///< queries, keys or columns of a tile
inline constexpr index_t pair_unit_sums = pair_unit * pair_columns;   ///< floats of its sums [32][32]
inline constexpr index_t pair_unit_block = pair_unit * pair_depth;    ///< elements of two blocks
inline constexpr index_t attention_pair_keys = 128;                   ///< of a block of scores
inline constexpr index_t attention_pair_blocks = attention_pair_keys / pair_depth;

/// Scores of a block of keys on their way to weights.
struct PairScores {
  index_t rows, packs;  ///< queries, a multiple of 4; keys in packs of 16
  float factor;         ///< scale log2(e), above zero
  const float* edge;    ///< [16], added to the last pack: hides lanes without a key
  float* score;         ///< [packs rounded up to two][32][32], products
  float* highest;       ///< [32], of all scores so far, in units of ln 2 and rounded up
  float* sum;           ///< [32][16], of the weights, by lane
  bool begun;           ///< whether `sum` and `total` hold something
  float* total;         ///< [totals][32][32], which shrinks where `highest` rises
  index_t totals;
  bfloat16* weight;  ///< [blocks of 32 keys][32][32]
};

/// Scores of 32 queries and up to 32 keys on their way to weights and slopes.
struct PairSlopes {
  index_t rows, packs;  ///< queries, 16 or 32; keys in packs of 16, 1 or 2
  float factor;         ///< scale log2(e)
  const float* level;   ///< [32], log sum exp in units of ln 2
  const float* delta;   ///< [32]
  const float *score, *dscore;           ///< [32][32]: q k^T and dout v^T
  bfloat16 *weight_pairs, *slope_pairs;  ///< [packs][16 pairs of queries][16 keys][2]; behind `rows` zero
  bfloat16* slope;                       ///< [32][32]
};

/// Loops between products, compiled for one instruction set.
struct PairAttentionLoops {
  void (*weights)(const PairScores& work);
  void (*slopes)(const PairSlopes& work);
};

/// Half a unit of bfloat16's last place is added to the magnitude, so that the upper halves are rounded: to nearest,
/// ties away from zero.
LPO_ALWAYS_INLINE WideBits<64> rounded_bits(PairRow value) { return to_bits(value) + 0x8000; }

template <int... I>
LPO_ALWAYS_INLINE void upper_halves(const PairLine& low, const PairLine& high, std::integer_sequence<int, I...>,
                                    PairLine& to) {
#if defined(__clang__)
  to = __builtin_shufflevector(low, high, (2 * I + 1)...);
#else
  to = __builtin_shuffle(low, high, PairLine{(2 * I + 1)...});
#endif
}

/// 32 neighbours of a row.
LPO_ALWAYS_INLINE void store_rounded(WideBits<64> low, WideBits<64> high, bfloat16* to) {
  PairLine first, second, both;
  std::memcpy(&first, &low.v, sizeof(first));
  std::memcpy(&second, &high.v, sizeof(second));
  upper_halves(first, second, std::make_integer_sequence<int, 32>{}, both);
  std::memcpy(static_cast<void*>(to), &both, sizeof(both));
}

/// 16 pairs of an even and an odd row.
LPO_ALWAYS_INLINE void store_rounded_pairs(WideBits<64> even, WideBits<64> odd, bfloat16* to) {
  const WideBits<64> both = ((even >> 16) & 0xffff) | (odd & -0x10000);
  std::memcpy(static_cast<void*>(to), &both.v, sizeof(both.v));
}

LPO_ALWAYS_INLINE void pair_weights(const PairScores& work) {
  using V = PairRow;
  constexpr int together = 4;  // rows whose maxima do not wait for each other
  const index_t packs = work.packs;
  const float factor = work.factor;
  for (index_t first = 0; first < work.rows; first += together) {
    const auto place = [&](index_t i, index_t pack) __attribute__((always_inline)) {
      return work.score + pack / 2 * pair_unit_sums + (first + i) * pair_columns + pack % 2 * pair_lanes;
    };
    V top[together];
    unroll<together>([&](auto i) __attribute__((always_inline)) {
      float* const last = place(i, packs - 1);
      top[i] = load_lanes<V>(last) + load_lanes<V>(work.edge);
      store_lanes(last, top[i]);
    });
    for (index_t pack = 0; pack + 1 < packs; ++pack)
      unroll<together>([&](auto i) __attribute__((always_inline)) {
        top[i] = larger(load_lanes<V>(place(i, pack)), top[i]);
      });
    float peaks[together];
    unroll<together>([&](auto i) __attribute__((always_inline)) { peaks[i] = lane_max(top[i]) * factor; });
    for (index_t i = 0; i < together; ++i) {
      const index_t row = first + i;
      const float before = work.highest[row], peak = std::ceil(std::max(before, peaks[i]));
      work.highest[row] = peak;
      float* const sum = work.sum + row * pair_lanes;
      V part{};
      if (work.begun) {
        part = load_lanes<V>(sum);
        if (peak > before) {
          const V shrink = exp2_above(V{} + (before - peak));
          part *= shrink;
          for (index_t t = 0; t < work.totals; ++t) {
            float* const at = work.total + t * pair_unit_sums + row * pair_columns;
            store_lanes(at, load_lanes<V>(at) * shrink);
            store_lanes(at + pair_lanes, load_lanes<V>(at + pair_lanes) * shrink);
          }
        }
      }
      float whole = peak, scale = factor;
      if (std::abs(whole) > static_cast<float>(1 << 21)) {  // exp2_above takes none larger
        // Rounded first, as the maximum was: a fused multiply-add could leave more than exp2_above takes.
        for (index_t pack = 0; pack < packs; ++pack) store_lanes(place(i, pack), load_lanes<V>(place(i, pack)) * factor);
        for (index_t pack = 0; pack < packs; ++pack) store_lanes(place(i, pack), load_lanes<V>(place(i, pack)) - whole);
        whole = 0.0f, scale = 1.0f;
      }
      const float* score = work.score + row * pair_columns;
      bfloat16* to = work.weight + row * pair_depth;
      for (index_t pack = 0; pack + 2 <= packs; pack += 2, score += pair_unit_sums, to += pair_unit_block) {
        const V low = exp2_above(load_lanes<V>(score) * scale, whole);
        const V high = exp2_above(load_lanes<V>(score + pair_lanes) * scale, whole);
        part += low + high;
        store_rounded(rounded_bits(low), rounded_bits(high), to);
      }
      if (packs % 2 == 1) {
        const V low = exp2_above(load_lanes<V>(score) * scale, whole);
        part += low;
        store_rounded(rounded_bits(low), to_bits(V{}), to);
      }
      store_lanes(sum, part);
    }
  }
}

LPO_ALWAYS_INLINE void pair_slopes(const PairSlopes& work) {
  using V = PairRow;
  const float factor = work.factor;
  for (index_t row = 0; row < work.rows; row += 2) {
    WideBits<64> slope[2][2] = {};
    for (index_t pack = 0; pack < work.packs; ++pack) {
      const index_t from = row * pair_columns + pack * pair_lanes, to = pack * pair_block + row * pair_lanes;
      WideBits<64> weight[2];
      unroll<2>([&](auto i) __attribute__((always_inline)) {
        const index_t at = from + i * pair_columns;
        const V p = exp2_above(load_lanes<V>(work.score + at) * factor - work.level[row + i]);
        weight[i] = rounded_bits(p);
        slope[i][pack] = rounded_bits(p * (load_lanes<V>(work.dscore + at) - work.delta[row + i]));
      });
      store_rounded_pairs(weight[0], weight[1], work.weight_pairs + to);
      store_rounded_pairs(slope[0][pack], slope[1][pack], work.slope_pairs + to);
    }
    unroll<2>([&](auto i) __attribute__((always_inline)) {
      store_rounded(slope[i][0], slope[i][1], work.slope + (row + i) * pair_depth);
    });
  }
  const auto rest = static_cast<std::size_t>((pair_unit - work.rows) * pair_lanes) * sizeof(bfloat16);
  for (index_t pack = 0; rest > 0 && pack < work.packs; ++pack) {
    std::memset(static_cast<void*>(work.weight_pairs + pack * pair_block + work.rows * pair_lanes), 0, rest);
    std::memset(static_cast<void*>(work.slope_pairs + pack * pair_block + work.rows * pair_lanes), 0, rest);
  }
}

#if defined(LPO_TARGET_PAIRS)
LPO_TARGET_PAIRS __attribute__((noinline)) inline void pair_weights_512(const PairScores& work) {
  pair_weights(work);
  LPO_LEAVE_WIDE_REGISTERS();
}
LPO_TARGET_PAIRS __attribute__((noinline)) inline void pair_slopes_512(const PairSlopes& work) {
  pair_slopes(work);
  LPO_LEAVE_WIDE_REGISTERS();
}
inline constexpr PairAttentionLoops pair_attention_loops_512{&pair_weights_512, &pair_slopes_512};
#endif

/// What multiplies and what lies between.
struct AttentionPairs {
  const PairTiles* tiles = nullptr;
  const PairAttentionLoops* loops = nullptr;
};

/// This machine's; without tiles where it does not multiply pairs.
inline AttentionPairs attention_pairs() {
#if defined(LPO_TARGET_PAIRS)
  if (pair_tiles().count > 0) return {pair_tiles().tiles[0], &pair_attention_loops_512};
#endif
  return {};
}

/// Whether attention of bfloat16 in that shape runs on pairs here. Few queries do not pay for the packing: 4 with 16 keys
/// took 1.3 times as long as in float on a Zen 4, 16 with 16 keys 0.9 times.
inline bool attends_in_pairs(const kernel::AttentionShape& shape) {
  return attention_pairs().tiles != nullptr && shape.batch * shape.heads > 0 && shape.queries >= pair_lanes &&
         shape.keys > 0 && shape.width > 0 && shape.scale > 0.0f;
}

/// Rows [first, first + 16) of `count`, elements [l, l + 32) of `width`, as a dense block; what does not exist is zero.
inline void copy_block(const bfloat16* rows, index_t row_stride, index_t first, index_t count, index_t l, index_t width,
                       bfloat16* to) {
  const index_t depth = std::min(pair_depth, width - l);
  for (index_t i = 0; i < pair_lanes; ++i, to += pair_depth) {
    if (first + i >= count) {
      std::memset(static_cast<void*>(to), 0, pair_depth * sizeof(bfloat16));
      continue;
    }
    const bfloat16* const from = rows + (first + i) * row_stride + l;
    if (depth == pair_depth) {
      std::memcpy(static_cast<void*>(to), from, pair_depth * sizeof(bfloat16));
      continue;
    }
    std::memset(static_cast<void*>(to), 0, pair_depth * sizeof(bfloat16));
    index_t at = 0;
    for (; at + 8 <= depth; at += 8) std::memcpy(static_cast<void*>(to + at), from + at, 8 * sizeof(bfloat16));
    for (; at < depth; ++at) to[at] = from[at];
  }
}

/// How the rows of (batch, head) pairs, [length, width] with strides, are cut into blocks of pairs.
struct PairMatrix {
  index_t length, width;

  index_t depth_blocks() const { return (width + pair_depth - 1) / pair_depth; }      ///< along the width
  index_t length_blocks() const { return (length + pair_depth - 1) / pair_depth; }    ///< along the length
  index_t column_units() const { return (width + pair_unit - 1) / pair_unit; }
  index_t columns(index_t unit) const { return std::min(pair_unit, width - unit * pair_unit); }
  static index_t panels(index_t count) { return (std::min(count, pair_unit) + pair_lanes - 1) / pair_lanes; }
  index_t depth_pairs() const { return (width - (depth_blocks() - 1) * pair_depth + 1) / 2; }  ///< of the last block

  /// Elements of all rows in blocks along the width, [units of 32 rows][depth_blocks][panels][block],
  index_t along_size() const { return length_blocks() * depth_blocks() * pair_unit_block; }
  index_t along(index_t unit) const { return unit * depth_blocks() * pair_unit_block; }
  /// and along the length, [column_units][length_blocks][panels][block].
  index_t across_size() const { return column_units() * length_blocks() * pair_unit_block; }
  index_t across(index_t unit, index_t block) const {
    return unit * length_blocks() * pair_unit_block + block * panels(columns(unit)) * pair_block;
  }

  /// A unit of rows as left or right operand of products along the width.
  template <bool right>
  void pack_along(const PairTiles& tiles, const bfloat16* rows, index_t row_stride, index_t unit, bfloat16* to) const {
    const index_t width_panels = panels(length - unit * pair_unit);
    for (index_t block = 0; block < depth_blocks(); ++block)
      for (index_t panel = 0; panel < width_panels; ++panel, to += pair_block) {
        const index_t first = unit * pair_unit + panel * pair_lanes;
        if constexpr (right) {
          alignas(64) bfloat16 dense[pair_block];
          copy_block(rows, row_stride, first, length, block * pair_depth, width, dense);
          PairLines lines;
          lines.run = lines.run_step = pair_depth;
          for (index_t i = 0; i < pair_lanes; ++i) lines.line[i] = dense + i * pair_depth;
          tiles.pack_lines[1](lines, pair_depth, 0, 1, to, pair_block);
        } else {
          copy_block(rows, row_stride, first, length, block * pair_depth, width, to);
        }
      }
  }

  /// Blocks [block, block + blocks) along the length of all columns; `offset`: where rows begin.
  template <bool right>
  void pack_across(const PairTiles& tiles, const bfloat16* rows, const index_t* offset, index_t block, index_t blocks,
                   bfloat16* to) const {
    for (index_t unit = 0; unit < column_units(); ++unit) {
      const index_t valid = columns(unit);
      tiles.pack_across[right || tiles.broadcasts](rows + unit * pair_unit, offset, valid, length, block, blocks,
                                                   to + across(unit, block), panels(valid) * pair_block, pair_block);
    }
  }
};

/// Left operands of a tile, and as many behind them to be fetched meanwhile.
struct PairGroups {
  PairGroup group[2 * pair_together];

  /// Two groups, the second `beside` elements behind the first.
  PairGroups(const bfloat16* data, index_t beside, index_t row, const index_t* step, index_t pair = 2) {
    for (index_t i = 0; i < 2 * pair_together; ++i) group[i] = {data + i % pair_together * beside, row, step, pair};
  }
};

/// Forward of blocks of queries. The order of all sums depends on the shape alone.
struct AttentionPairForward {
  static constexpr index_t units = 2;  ///< of 32 queries, of a task

  AttentionPairs machine;
  const kernel::AttentionShape& shape;
  const bfloat16 *q, *k, *v;
  bfloat16* out;
  float* log_sum_exp;
  PairMatrix matrix{shape.keys, shape.width};  ///< keys and values
  bfloat16 *keys = nullptr, *values = nullptr;
  const index_t* steps[2] = {};  ///< of blocks in left operands of one and of two groups

  void run(Context<Cpu>& ctx) {
    const index_t pairs = shape.batch * shape.heads, rows = units * pair_unit;
    Scratch<Cpu> scratch(ctx);
    keys = scratch.allocate<bfloat16>(pairs * matrix.along_size());
    values = scratch.allocate<bfloat16>(pairs * matrix.across_size());
    const index_t most = std::max(matrix.depth_blocks(), attention_pair_blocks);
    steps[0] = even_steps(scratch, most, pair_block);
    steps[1] = even_steps(scratch, most, pair_unit_block);
    const index_t* const offset = even_steps(scratch, shape.keys, shape.v_row);
    const index_t parts = (matrix.length_blocks() + attention_pair_blocks - 1) / attention_pair_blocks;
    const index_t pack_grain = std::max<index_t>(1, 16384 / (attention_pair_keys * shape.width));
    ctx.executor().parallel_for(pairs * parts, pack_grain, [&](index_t begin, index_t end) {
      for (index_t task = begin; task < end; ++task)
        pack(task / parts, task % parts * attention_pair_blocks, offset);
    });
    const index_t blocks = (shape.queries + rows - 1) / rows;
    WorkerScratch<float> workspaces(ctx, scratch, scratch_size());
    const index_t grain = attention_grain(std::min(shape.queries, rows) * shape.keys * shape.width / 2);
    ctx.executor().parallel_for(pairs * blocks, grain, [&](index_t begin, index_t end) {
      const WorkerScratch<float>::Lease space(workspaces);
      machine.tiles->begin();
      for (index_t task = begin; task < end; ++task)
        run_block(task / blocks, task % blocks * rows, space.data());
      machine.tiles->end();
    });
  }

 private:
  static constexpr index_t score_size = attention_pair_blocks * pair_unit_sums;

  index_t total_size() const { return matrix.column_units() * pair_unit_sums; }
  index_t query_size() const { return matrix.depth_blocks() * pair_unit_block; }
  index_t scratch_size() const {
    return score_size + units * (total_size() + pair_unit * (pair_lanes + 2)) +
           (attention_pair_blocks * pair_unit_block + units * query_size()) / 2;
  }

  const bfloat16* head(const bfloat16* data, index_t pair, index_t length, index_t row) const {
    return data + pair / shape.heads * length * row + pair % shape.heads * shape.width;
  }

  void pack(index_t pair, index_t block, const index_t* offset) const {
    const index_t end = std::min(matrix.length_blocks(), block + attention_pair_blocks);
    const bfloat16* const key_rows = head(k, pair, shape.keys, shape.k_row);
    for (index_t unit = block; unit < end; ++unit)
      matrix.pack_along<true>(*machine.tiles, key_rows, shape.k_row, unit,
                              keys + pair * matrix.along_size() + matrix.along(unit));
    matrix.pack_across<true>(*machine.tiles, head(v, pair, shape.keys, shape.v_row), offset, block, end - block,
                             values + pair * matrix.across_size());
  }

  void run_block(index_t pair, index_t first, float* space) const {
    const index_t count = std::min(units * pair_unit, shape.queries - first);
    float* const score = space;
    float* const total = score + score_size;
    float* const sum = total + units * total_size();
    float* const highest = sum + units * pair_unit * pair_lanes;
    float* const factor = highest + units * pair_unit;
    bfloat16* const weight = reinterpret_cast<bfloat16*>(factor + units * pair_unit);
    bfloat16* const query = weight + attention_pair_blocks * pair_unit_block;
    std::fill(highest, highest + units * pair_unit, -1e30f);
    const PairMatrix queries{count, shape.width};
    for (index_t unit = 0; unit * pair_unit < count; ++unit)
      queries.pack_along<false>(*machine.tiles, head(q, pair, shape.queries, shape.q_row) + first * shape.q_row,
                                shape.q_row, unit, query + queries.along(unit));
    const index_t visible = shape.causal ? std::min(shape.keys, first + count) : shape.keys;
    for (index_t begin = 0; begin < visible; begin += attention_pair_keys)
      for (index_t unit = 0; unit * pair_unit < count; ++unit)
        run_unit(pair, first + unit * pair_unit, std::min(pair_unit, count - unit * pair_unit), begin,
                 query + queries.along(unit), score, weight, highest + unit * pair_unit,
                 sum + unit * pair_unit * pair_lanes, total + unit * total_size());
    store(pair, first, count, highest, sum, total, factor);
  }

  /// What a block of keys gives to a unit of queries.
  void run_unit(index_t pair, index_t first, index_t count, index_t begin, const bfloat16* query, float* score,
                bfloat16* weight, float* highest, float* sum, float* total) const {
    if (shape.causal && begin >= first + count) return;
    const index_t block = std::min(attention_pair_keys, shape.keys - begin), groups = PairMatrix::panels(count);
    const index_t rows = std::min(pair_unit, (count + 7) / 8 * 8), packs = (block + pair_lanes - 1) / pair_lanes;
    const index_t key_blocks = (block + pair_depth - 1) / pair_depth, tile = begin / pair_depth;
    const PairGroups left(query, pair_block, pair_depth, steps[groups - 1]);
    for (index_t t = 0; t < key_blocks; ++t)
      machine.tiles->run({groups, PairMatrix::panels(block - t * pair_unit), matrix.depth_blocks(), rows,
                          matrix.depth_pairs(), left.group,
                          keys + pair * matrix.along_size() + matrix.along(tile + t), score + t * pair_unit_sums, false,
                          nullptr, nullptr, nullptr});
    const float factor = static_cast<float>(shape.scale * log2_of_e);
    const float hidden = std::max(-3e38f, -2e30f / factor);
    alignas(64) float edge[pair_lanes];
    for (index_t i = 0; i < pair_lanes; ++i) edge[i] = (packs - 1) * pair_lanes + i < block ? 0.0f : hidden;
    const bool cut = shape.causal && begin + block > first + 1;
    if (cut) set_later_keys(score, first, count, begin, block, hidden);
    machine.loops->weights({rows, packs, factor, edge, score, highest, sum, begin > 0, total, matrix.column_units(), weight});
    if (cut) set_later_keys(weight, first, count, begin, block, bfloat16(0.0f));
    const PairGroups weights(weight, pair_block, pair_depth, steps[1]);
    for (index_t unit = 0; unit < matrix.column_units(); ++unit)
      machine.tiles->run({groups, PairMatrix::panels(matrix.columns(unit)), key_blocks, rows,
                          (block - (key_blocks - 1) * pair_depth + 1) / 2, weights.group,
                          values + pair * matrix.across_size() + matrix.across(unit, tile),
                          total + unit * pair_unit_sums, begin > 0, nullptr, nullptr, nullptr});
  }

  /// Sets what belongs to keys after a query's own, in [blocks of 32 keys][32][32].
  template <class N>
  static void set_later_keys(N* data, index_t first, index_t count, index_t begin, index_t block, N value) {
    for (index_t i = 0; i < count; ++i)
      for (index_t j = std::clamp<index_t>(first + i + 1 - begin, 0, block); j < block; ++j)
        data[j / pair_unit * pair_unit_sums + i * pair_unit + j % pair_unit] = value;
  }

  void store(index_t pair, index_t first, index_t count, const float* highest, const float* sum, const float* total,
             float* factor) const {
    bfloat16* const to = out + (pair / shape.heads * shape.queries + first) * shape.out_row + pair % shape.heads * shape.width;
    float* const level = log_sum_exp ? log_sum_exp + pair * shape.queries + first : nullptr;
    const index_t row = shape.out_row, width = shape.width, size = total_size();
    with_lanes<bfloat16>([=]<class V>() __attribute__((always_inline)) {
      for (index_t i = 0; i < count; ++i) {
        V part{};
        for (index_t at = 0; at < pair_lanes; at += LaneTraits<V>::width)
          part += load_lanes<V>(sum + i * pair_lanes + at);
        factor[i] = lane_sum(part);
      }
      for_lanes<V>(
          0, count, [&](index_t i, auto some) __attribute__((always_inline)) {
            const V whole = some.load(factor + i, 1.0f);
            if (level) some.store(level + i, some.load(highest + i) * static_cast<float>(log_of_2) + log(whole));
            some.store(factor + i, 1.0f / whole);
          });
      for (index_t i = 0; i < count; ++i) {
        const float* const from = total + i / pair_unit * size + i % pair_unit * pair_columns;
        for_lanes<V>(
            0, width, [&](index_t d, auto some) __attribute__((always_inline)) {
              some.store(to + i * row + d,
                         load_lanes<V>(from + d / pair_unit * pair_unit_sums + d % pair_unit) * factor[i]);
            });
      }
    });
  }
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
