// SPDX-License-Identifier: MIT
// Building blocks of CPU attention: products whose result lies across lanes, transposed loads and stores.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include <lpo/backend/cpu/lane_dispatch.hpp>
#include <lpo/backend/cpu/lane_math.hpp>
#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/kernel/attention.hpp>
#include <lpo/tensor/context.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Keys or queries of a block of scores: beside 48 of the others it stays in the first-level cache.
inline constexpr index_t attention_block = 96;

/// Tasks per chunk, so that a chunk is large against handing it out.
inline index_t attention_grain(index_t products) {
  return std::max<index_t>(1, (index_t{1} << 18) / std::max<index_t>(1, products));
}

/// Lanes of a whole block of queries or keys: four of the machine's registers, which one register tile of products
/// takes.
template <class T>
index_t attention_lanes() {
  return 4 * machine_lanes<T>();
}
/// Lanes for `count` queries or keys of a block: whole registers.
template <class T>
index_t lanes_for(index_t count) {
  const index_t width = machine_lanes<T>();
  return (count + width - 1) / width * width;
}

/// Vectors beside each other in a register tile. Four of 32 bytes would leave 8 accumulators, too few to hide the
/// latency of a multiply-add.
template <int bytes>
inline constexpr int attention_tile_packs = bytes == 32 ? 2 : 4;

/// Rows of a register tile of `Packs` vectors: as many accumulators as leave room for the operands.
template <int bytes, int Packs>
inline constexpr int attention_tile_rows = bytes == 64   ? (Packs == 4 ? 6 : 8)
                                           : bytes == 32 ? (Packs == 3 ? 4 : Packs == 2 ? 6 : 8)
                                                         : (Packs == 4 ? 2 : 4);

template <class S, int bytes>
struct AttentionVector {
  typedef S type __attribute__((vector_size(bytes)));
};
template <>
struct AttentionVector<double, 8> {
  using type = double;
};

/// c[r][lane] (+)= sum over t < depth of a[r * a_row + t * a_step] * b[t * b_step + lane], `Rows` rows of `Packs`
/// vectors.
template <class S, int bytes, int Rows, int Packs, bool Add>
LPO_ALWAYS_INLINE void multiply_tile(const S* a, index_t a_row, index_t a_step, const S* b, index_t b_step,
                                     index_t depth, S* c, index_t c_row) {
  using V = typename AttentionVector<S, bytes>::type;
  constexpr int width = bytes / static_cast<int>(sizeof(S));
  V sum[Rows * Packs] = {};
  for (index_t t = 0; t < depth; ++t) {
    V column[Packs];
    unroll<Packs>([&](auto i) __attribute__((always_inline)) { std::memcpy(&column[i], b + i * width, sizeof(V)); });
    unroll<Rows>([&](auto r) __attribute__((always_inline)) {
      const S factor = a[r * a_row];
      unroll<Packs>([&](auto i) __attribute__((always_inline)) { sum[r * Packs + i] += factor * column[i]; });
    });
    a += a_step;
    b += b_step;
  }
  unroll<Rows>([&](auto r) __attribute__((always_inline)) {
    unroll<Packs>([&](auto i) __attribute__((always_inline)) {
      S* const target = c + r * c_row + i * width;
      if constexpr (Add) {
        V before;
        std::memcpy(&before, target, sizeof(V));
        sum[r * Packs + i] += before;
      }
      std::memcpy(target, &sum[r * Packs + i], sizeof(V));
    });
  });
}

/// The same for any number of rows.
template <class S, int bytes, int Packs, bool Add>
LPO_ALWAYS_INLINE void multiply_some(index_t rows, const S* a, index_t a_row, index_t a_step, const S* b,
                                     index_t b_step, index_t depth, S* c, index_t c_row) {
  constexpr int tile = attention_tile_rows<bytes, Packs>;
  const auto step = [&](auto count) __attribute__((always_inline)) {
    multiply_tile<S, bytes, decltype(count)::value, Packs, Add>(a, a_row, a_step, b, b_step, depth, c, c_row);
    a += count * a_row;
    c += count * c_row;
    rows -= count;
  };
  while (rows >= tile) step(std::integral_constant<int, tile>{});
  if constexpr (tile > 4) {
    if (rows >= 4) step(std::integral_constant<int, 4>{});
  }
  if constexpr (tile > 2) {
    if (rows >= 2) step(std::integral_constant<int, 2>{});
  }
  if (rows >= 1) step(std::integral_constant<int, 1>{});
}

/// The same for a result of `columns` lanes, a multiple of the translation unit's pack, in vectors of up to `bytes`.
template <class S, int bytes, bool Add>
LPO_ALWAYS_INLINE void multiply_lanes(index_t rows, index_t columns, const S* a, index_t a_row, index_t a_step,
                                      const S* b, index_t b_step, index_t depth, S* c, index_t c_row) {
  constexpr index_t width = bytes / static_cast<int>(sizeof(S));
  index_t at = 0;
  if constexpr (attention_tile_packs<bytes> == 4) {
    for (; at + 4 * width <= columns; at += 4 * width)
      multiply_some<S, bytes, 4, Add>(rows, a, a_row, a_step, b + at, b_step, depth, c + at, c_row);
  }
  if constexpr (bytes == 32) {  // an odd number of packs, as a head of 40 has: one alone would wait for its operands
    if (columns / width % 2 == 1 && columns >= 3 * width) {
      multiply_some<S, bytes, 3, Add>(rows, a, a_row, a_step, b, b_step, depth, c, c_row);
      at = 3 * width;
    }
  }
  for (; at + 2 * width <= columns; at += 2 * width)
    multiply_some<S, bytes, 2, Add>(rows, a, a_row, a_step, b + at, b_step, depth, c + at, c_row);
  for (; at + width <= columns; at += width)
    multiply_some<S, bytes, 1, Add>(rows, a, a_row, a_step, b + at, b_step, depth, c + at, c_row);
  if constexpr (bytes > LPO_SIMD_BYTES) {
    if (at < columns)
      multiply_lanes<S, bytes / 2, Add>(rows, columns - at, a, a_row, a_step, b + at, b_step, depth, c + at, c_row);
  }
}

template <class S, int bytes, bool Add>
__attribute__((noinline)) void multiply_native(index_t rows, index_t columns, const S* a, index_t a_row, index_t a_step,
                                               const S* b, index_t b_step, index_t depth, S* c, index_t c_row) {
  multiply_lanes<S, bytes, Add>(rows, columns, a, a_row, a_step, b, b_step, depth, c, c_row);
}
#if defined(LPO_TARGET_256)
template <class S, bool Add>
LPO_TARGET_256 __attribute__((noinline)) void multiply_256(index_t rows, index_t columns, const S* a, index_t a_row,
                                                           index_t a_step, const S* b, index_t b_step, index_t depth,
                                                           S* c, index_t c_row) {
  multiply_lanes<S, 32, Add>(rows, columns, a, a_row, a_step, b, b_step, depth, c, c_row);
  LPO_LEAVE_WIDE_REGISTERS();
}
#endif
#if defined(LPO_TARGET_512)
template <class S, bool Add>
LPO_TARGET_512 __attribute__((noinline)) void multiply_512(index_t rows, index_t columns, const S* a, index_t a_row,
                                                           index_t a_step, const S* b, index_t b_step, index_t depth,
                                                           S* c, index_t c_row) {
  multiply_lanes<S, 64, Add>(rows, columns, a, a_row, a_step, b, b_step, depth, c, c_row);
  LPO_LEAVE_WIDE_REGISTERS();
}
#endif

/// c[r][lane] (+)= sum over t < depth of a[r * a_row + t * a_step] * b[t * b_step + lane] in this machine's widest
/// registers; `columns` is a multiple of the unit's pack.
template <bool Add, class S>
void multiply_rows(index_t rows, index_t columns, const S* a, index_t a_row, index_t a_step, const S* b, index_t b_step,
                   index_t depth, S* c, index_t c_row) {
  auto run = &multiply_native<S, static_cast<int>(sizeof(lanes_t<S>)), Add>;
  if constexpr (std::is_same_v<S, float>) {
    [[maybe_unused]] const int bytes = machine_simd_bytes();
#if defined(LPO_TARGET_256)
    if (bytes == 32) run = &multiply_256<S, Add>;
#endif
#if defined(LPO_TARGET_512)
    if (bytes == 64) run = &multiply_512<S, Add>;
#endif
  }
  run(rows, columns, a, a_row, a_step, b, b_step, depth, c, c_row);
}

/// columns[d][lane] = factor * rows[lane][d] for `count` rows of `width` numbers; the lanes from count to `lanes`, a
/// multiple of machine_lanes, are zero.
template <class T, class S>
void load_columns(const T* rows, index_t row_stride, index_t count, index_t width, S factor, S* columns,
                  index_t lanes) {
  with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
    constexpr int side = LaneTraits<V>::width;
    for (index_t lane = 0; lane < lanes; lane += side)
      for_lanes<V>(
          0, width, [&](index_t d, auto part) __attribute__((always_inline)) {
            V square[side];
            unroll<side>([&](auto i) __attribute__((always_inline)) {
              square[i] = lane + i < count ? part.load(rows + (lane + i) * row_stride + d) * factor : V{};
            });
            transpose_lanes(square);
            const index_t depth = std::min<index_t>(side, width - d);
            unroll<side>([&](auto i) __attribute__((always_inline)) {
              if (i < depth) store_lanes(columns + (d + i) * lanes + lane, square[i]);
            });
          });
  });
}

/// rows[lane][d] (+)= factor[lane] * columns[d][lane]
template <class T, class S>
void store_columns(const S* columns, index_t lanes, const S* factor, index_t count, index_t width, T* rows,
                   index_t row_stride, bool accumulate) {
  with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
    constexpr int side = LaneTraits<V>::width;
    for (index_t lane = 0; lane < count; lane += side)
      for_lanes<V>(
          0, width, [&](index_t d, auto part) __attribute__((always_inline)) {
            V square[side];
            const V scale = load_lanes<V>(factor + lane);
            const index_t depth = std::min<index_t>(side, width - d);
            unroll<side>([&](auto i) __attribute__((always_inline)) {
              square[i] = i < depth ? load_lanes<V>(columns + (d + i) * lanes + lane) * scale : V{};
            });
            transpose_lanes(square);
            unroll<side>([&](auto i) __attribute__((always_inline)) {
              if (lane + i < count) {
                T* const target = rows + (lane + i) * row_stride + d;
                if (accumulate) square[i] += part.load(target);
                part.store(target, square[i]);
              }
            });
          });
  });
}

/// sums[i] = a_i . b_i over `count` rows of `width` numbers, `stride` apart.
template <class T, class S>
void multiply_rows_with_rows(index_t count, index_t width, const T* a, const T* b, index_t stride, S* sums) {
  with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
    for (index_t i = 0; i < count; ++i) {
      V sum{};
      for_lanes<V>(
          i * stride, i * stride + width, [&](index_t d, auto lanes) __attribute__((always_inline)) {
            sum += lanes.load(a + d) * lanes.load(b + d);
          });
      sums[i] = lane_sum(sum);
    }
  });
}

/// Rows in the type that products read: float and double where they are, 16-bit numbers converted into `space`.
template <class S>
struct AttentionRows {
  const S* data;
  index_t stride;
};
template <class S, class T>
AttentionRows<S> attention_rows(const T* rows, index_t row_stride, index_t count, index_t width, S* space) {
  if constexpr (std::is_same_v<T, S>) {
    return {rows, row_stride};
  } else {
    with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
      for (index_t row = 0; row < count; ++row)
        for_lanes<V>(
            0, width, [&](index_t at, auto lanes) __attribute__((always_inline)) {
              lanes.store(space + row * width + at, lanes.load(rows + row * row_stride + at));
            });
    });
    return {space, width};
  }
}

/// Rows [begin, …) of one (batch, head) pair, from the dense copy that pack_heads made or, without one, from the
/// tensor.
template <class S, class T>
AttentionRows<S> attention_rows(const S* packed, index_t position, const T* rows, index_t row_stride, index_t count,
                                index_t width, S* space) {
  if (packed) return {packed + position * width, width};
  return attention_rows(rows, row_stride, count, width, space);
}

/// Copies [batch, length, heads, width] with strided rows into a [batch, heads, length, row] of S, row >= width: blocks
/// that read the same rows again and again find them in sequence (measured 1.5 times faster at 4096 rows of 8 heads of
/// 40). What a row has beyond `width`, less than a register, is zero.
template <class S, class T>
const S* pack_heads(Context<Cpu>& ctx, Scratch<Cpu>& scratch, index_t batch, index_t length, index_t heads,
                    index_t width, const T* rows, index_t row_stride, index_t row) {
  S* const packed = scratch.allocate<S>(batch * length * heads * row);
  const index_t grain = std::max<index_t>(1, 16384 / std::max<index_t>(1, heads * width));
  ctx.executor().parallel_for(batch * length, grain, [&](index_t begin, index_t end) {
    with_lanes<T>([=]<class V>() __attribute__((always_inline)) {
      for (index_t from = begin; from < end; ++from)
        for (index_t head = 0; head < heads; ++head) {
          const T* const source = rows + from * row_stride + head * width;
          S* const to = packed + ((from / length * heads + head) * length + from % length) * row;
          for_lanes<V>(
              0, width, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                const V value = lanes.load(source + at);
                if (row >= at + LaneTraits<V>::width)
                  store_lanes(to + at, value);
                else
                  lanes.store(to + at, value);
              });
        }
    });
  });
  return packed;
}

/// The keys (or values) of each (batch, head) pair, times `factor`, in blocks [width, lanes] of attention_block keys, the
/// last one of as many registers as it needs: [pairs, width lanes_for(keys)] in all. Lanes beyond the keys are zero.
template <class S, class T>
const S* keys_across_lanes(Context<Cpu>& ctx, Scratch<Cpu>& scratch, const kernel::AttentionShape& shape, const T* k,
                           index_t k_row, S factor) {
  const index_t pairs = shape.batch * shape.heads, width = shape.width, size = lanes_for<T>(shape.keys) * width;
  const index_t blocks = (shape.keys + attention_block - 1) / attention_block;
  S* const packed = scratch.allocate<S>(pairs * size);
  const index_t grain = std::max<index_t>(1, 16384 / std::max<index_t>(1, size / blocks));
  ctx.executor().parallel_for(pairs * blocks, grain, [&](index_t begin, index_t end) {
    for (index_t at = begin; at < end; ++at) {
      const index_t pair = at / blocks, first = at % blocks * attention_block;
      const index_t count = std::min(attention_block, shape.keys - first);
      const T* const rows =
          k + (pair / shape.heads * shape.keys + first) * k_row + pair % shape.heads * width;
      load_columns(rows, k_row, count, width, factor, packed + pair * size + first * width,
                   lanes_for<T>(count));
    }
  });
  return packed;
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
