// SPDX-License-Identifier: MIT
// Bringing operands into the form that the register tile reads: panels of B, tables of steps, 16-bit storage as float.
#pragma once

#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/backend/cpu/product_tile.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Height of the blocks that a transposed A is packed into: what every tile height and every job height divides.
inline constexpr index_t packed_rows = 24;

/// Length in elements of a packed [k, n] operand.
template <class S>
index_t packed_size(index_t k, index_t n) {
  return k * ((n + tile_lanes<S> - 1) / tile_lanes<S> * tile_lanes<S>);
}

/// to[l][0, width) for l in [first, last) from rows that start at from + offset[l]; columns from `valid` on become 0.
template <class S>
void pack_rows(const S* from, const index_t* offset, index_t first, index_t last, S* to, index_t width, index_t valid) {
  for (index_t l = first; l < last; ++l) {
    const S* row = from + offset[l];
    S* target = to + l * width;
    if (valid == tile_columns<S>) {  // a constant length becomes register moves
      std::memcpy(target, row, sizeof(S) * static_cast<std::size_t>(tile_columns<S>));
      continue;
    }
    for (index_t j = 0; j < valid; ++j) target[j] = row[j];
    for (index_t j = valid; j < width; ++j) target[j] = S{};
  }
}

/// to[l][j] = from[j * step + l] for l in [first, last): the columns of the panel are rows of the source.
template <class S>
void pack_columns(const S* from, index_t step, index_t first, index_t last, S* to, index_t width, index_t valid) {
  index_t j = 0;
#if defined(__SSE2__)
  if constexpr (std::is_same_v<S, float>) {
    for (; j + 4 <= valid; j += 4) {
      const float* r0 = from + j * step;
      const float *r1 = r0 + step, *r2 = r1 + step, *r3 = r2 + step;
      index_t l = first;
      for (; l + 4 <= last; l += 4) {
        __m128 x0 = _mm_loadu_ps(r0 + l), x1 = _mm_loadu_ps(r1 + l), x2 = _mm_loadu_ps(r2 + l),
               x3 = _mm_loadu_ps(r3 + l);
        _MM_TRANSPOSE4_PS(x0, x1, x2, x3);
        float* target = to + l * width + j;
        _mm_storeu_ps(target, x0);
        _mm_storeu_ps(target + width, x1);
        _mm_storeu_ps(target + 2 * width, x2);
        _mm_storeu_ps(target + 3 * width, x3);
      }
      for (; l < last; ++l) {
        float* target = to + l * width + j;
        target[0] = r0[l];
        target[1] = r1[l];
        target[2] = r2[l];
        target[3] = r3[l];
      }
    }
  }
#endif
  for (; j < width; ++j)
    for (index_t l = first; l < last; ++l) to[l * width + j] = j < valid ? from[j * step + l] : S{};
}

/// Packs `batch` operands [k, n] into panels at `to`, threaded. `pack(item, column, first, last, target, width, valid)`
/// fills rows [first, last) of the panel that begins at `column`.
template <class S, class PackPanel>
void pack_panels(Context<Cpu>& context, index_t batch, index_t k, index_t n, S* to, PackPanel&& pack) {
  constexpr index_t columns = tile_columns<S>, lanes = tile_lanes<S>, block = 64;
  if (k <= 0 || n <= 0) return;
  const index_t panels = (n + columns - 1) / columns, blocks = (k + block - 1) / block;
  const index_t grain = std::max<index_t>(1, 32768 / (std::min(block, k) * std::min(columns, n)));
  context.executor().parallel_for(batch * panels * blocks, grain, [&](index_t begin, index_t end) {
    for (index_t at = begin; at < end; ++at) {
      const index_t item = at / (panels * blocks), column = at / blocks % panels * columns, first = at % blocks * block;
      const index_t valid = std::min(columns, n - column), width = (valid + lanes - 1) / lanes * lanes;
      pack(item, column, first, std::min(k, first + block), to + item * packed_size<S>(k, n) + column * k, width,
           valid);
    }
  });
}

/// Packs A, stored [k, m], into blocks [k][packed_rows], so that a tile reads lines in sequence.
template <class S>
void pack_transposed(Context<Cpu>& context, index_t m, index_t k, const S* from, index_t step, S* to) {
  constexpr index_t block = 256;
  const index_t groups = (m + packed_rows - 1) / packed_rows, blocks = (k + block - 1) / block;
  context.executor().parallel_for(groups * blocks, 8, [&](index_t begin, index_t end) {
    for (index_t at = begin; at < end; ++at) {
      const index_t row = at / blocks * packed_rows, first = at % blocks * block, last = std::min(k, first + block);
      const index_t valid = std::min(packed_rows, m - row);
      for (index_t l = first; l < last; ++l) {
        const S* source = from + l * step + row;
        S* target = to + row * k + l * packed_rows;
        if (valid == packed_rows)
          std::memcpy(target, source, packed_rows * sizeof(S));
        else
          for (index_t i = 0; i < valid; ++i) target[i] = source[i];
      }
    }
  });
}

/// The rows of an A packed by pack_transposed; steps are packed_rows apart.
inline RowMap packed_row_map(index_t m, index_t k) {
  return {packed_rows, (m + packed_rows - 1) / packed_rows, 1, packed_rows * k, 0};
}

/// A table of `count` steps: 0, step, 2 step, …
inline const index_t* even_steps(Scratch<Cpu>& scratch, index_t count, index_t step) {
  index_t* table = scratch.allocate<index_t>(count);
  for (index_t i = 0; i < count; ++i) table[i] = i * step;
  return table;
}

/// `count` elements in the arithmetic type.
template <class S, class T>
void convert_line(const T* from, index_t count, S* to) {
  if constexpr (std::is_same_v<S, T>) {
    std::copy_n(from, count, to);
  } else {
    for_lanes<Pack>(0, count, [&](index_t i, auto lanes) { lanes.store(to + i, lanes.load(from + i)); });
  }
}

/// Lines of `width` elements that begin `step` apart, converted to dense lines; threaded.
template <class S, class T>
void convert_block(Context<Cpu>& context, index_t rows, index_t width, const T* from, index_t step, S* to) {
  const index_t grain = std::max<index_t>(1, 65536 / std::max<index_t>(1, width));
  context.executor().parallel_for(rows, grain, [&](index_t begin, index_t end) {
    for (index_t r = begin; r < end; ++r) convert_line(from + r * step, width, to + r * width);
  });
}

/// The operand itself where it already has the right type, else a dense copy in scratch.
template <class S, class T>
const S* as_compute(Context<Cpu>& context, Scratch<Cpu>& scratch, const T* from, index_t count) {
  if constexpr (std::is_same_v<S, T>) {
    return from;
  } else {
    S* copy = scratch.allocate<S>(count);
    context.executor().parallel_for(
        count, 65536, [&](index_t begin, index_t end) { convert_line(from + begin, end - begin, copy + begin); });
    return copy;
  }
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
