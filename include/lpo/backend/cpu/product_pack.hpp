// SPDX-License-Identifier: MIT
// Bringing operands into the form that the register tile reads: panels of B, tables of steps, 16-bit storage as float.
#pragma once

#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/backend/cpu/product_tile.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Height of the blocks that a transposed A is packed into: what every tile height and every job height divides.
inline constexpr index_t packed_rows = 24;

/// Length in elements of a packed [k, n] operand: panels of full width, one after the other.
inline index_t packed_size(index_t k, index_t n, index_t columns) {
  return k * ((n + columns - 1) / columns * columns);
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

// The pack functions widen 16-bit storage on the way: weights are never copied as a whole.

/// to[l - first][0, valid) for l in [first, last) from rows that start at from + offset[l]; zeros up to the next
/// register.
template <class S, class T>
void pack_rows(const TileKernel<S>& kernel, const T* from, const index_t* offset, index_t first, index_t last, S* to,
               index_t valid) {
  const index_t columns = kernel.columns(), lanes = kernel.lanes;
  const index_t width = (valid + lanes - 1) / lanes * lanes;
  for (index_t l = first; l < last; ++l) {
    S* target = to + (l - first) * columns;
    convert_line(from + offset[l], valid, target);
    for (index_t j = valid; j < width; ++j) target[j] = S{};
  }
}

/// to[l - first][j] = from[j * step + l] for l in [first, last): the columns of the panel are rows of the source.
template <class S, class T>
void pack_columns(const TileKernel<S>& kernel, const T* from, index_t step, index_t first, index_t last, S* to,
                  index_t valid) {
  using V = lanes_t<S>;
  constexpr index_t lanes = LaneTraits<V>::width;
  const index_t columns = kernel.columns(), width = (valid + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
  index_t l = first;
  for (; l + lanes <= last; l += lanes) {
    for (index_t j = 0; j < width; j += lanes) {
      V rows[lanes];
      for (index_t i = 0; i < lanes; ++i) rows[i] = j + i < valid ? load_all<V>(from + (j + i) * step + l) : V{};
      transpose_lanes(rows);
      for (index_t i = 0; i < lanes; ++i) store_lanes(to + (l - first + i) * columns + j, rows[i]);
    }
  }
  for (; l < last; ++l)
    for (index_t j = 0; j < width; ++j)
      to[(l - first) * columns + j] = j < valid ? load_lanes<S>(from + j * step + l) : S{};
}

/// Runs the product with B of `items` operands [k, n]. `pack(item, column, first, last, to, valid)` writes rows
/// [first, last) of the panel that begins at `column`; where no two jobs would read the same part of a panel, each job
/// packs its own, else B is packed before, threaded.
template <class S, class T, class PackPanel>
void run_packing(Context<Cpu>& context, Scratch<Cpu>& scratch, TileProduct<S>& p, const TileOutput<T>& out,
                 index_t items, PackPanel&& pack) {
  constexpr index_t block = 64;
  const index_t columns = p.kernel->columns(), k = p.k, n = p.n;
  p.b_step = even_steps(scratch, k, columns);
  if (p.m <= tile_job_rows && items == p.batch && cut_product(p.m, n, k, columns, p.batch).rows >= p.m) {
    p.pack = [](const void* source, index_t item, index_t column, index_t first, index_t last, S* to, index_t valid) {
      (*static_cast<const std::remove_reference_t<PackPanel>*>(source))(item, column, first, last, to, valid);
    };
    p.pack_source = &pack;
    return run_product(context, p, out);
  }
  const index_t panels = (n + columns - 1) / columns, blocks = (k + block - 1) / block;
  const index_t size = packed_size(k, n, columns);
  S* to = scratch.allocate<S>(items * size);
  p.b = to;
  p.panel_step = k * columns;
  p.batch_b = items == 1 ? 0 : size;
  const index_t grain = std::max<index_t>(1, 32768 / (block * columns));
  context.executor().parallel_for(items * panels * blocks, grain, [&](index_t begin, index_t end) {
    for (index_t at = begin; at < end; ++at) {
      const index_t item = at / (panels * blocks), column = at / blocks % panels * columns, first = at % blocks * block;
      pack(item, column, first, std::min(k, first + block), to + item * size + column * k + first * columns,
           std::min(columns, n - column));
    }
  });
  run_product(context, p, out);
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

/// Makes A of `items` operands stored [k, m] with lines `step` apart.
template <class S>
void use_transposed(Context<Cpu>& context, Scratch<Cpu>& scratch, TileProduct<S>& p, const S* data, index_t step,
                    index_t items, index_t batch_step) {
  // In place, each tile reads a few elements of every line, which is as fast while these lines stay in L1. Limits
  // measured.
  if (p.m < packed_rows || p.n * p.batch < 128 || (step < 192 && p.k < 1024)) {
    p.a = data;
    p.batch_a = batch_step;
    p.rows = even_rows(p.m, 1);
    p.a_step = even_steps(scratch, p.k, step);
    return;
  }
  const index_t groups = (p.m + packed_rows - 1) / packed_rows, size = groups * packed_rows * p.k;
  S* blocks = scratch.allocate<S>(items * size);
  for (index_t item = 0; item < items; ++item)
    pack_transposed(context, p.m, p.k, data + item * batch_step, step, blocks + item * size);
  p.a = blocks;
  p.batch_a = items == 1 ? 0 : size;
  p.rows = {packed_rows, groups, 1, packed_rows * p.k, 0};
  p.a_step = even_steps(scratch, p.k, packed_rows);
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
#endif
