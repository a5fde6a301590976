// SPDX-License-Identifier: MIT
// Bringing operands into the form that the register tile reads: blocks of A, panels of B, 16-bit storage as float.
#pragma once

#include <lpo/backend/cpu/lane_dispatch.hpp>
#include <lpo/backend/cpu/product_store.hpp>
#include <lpo/backend/cpu/product_tile.hpp>
#include <lpo/tensor/context.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

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
    with_lanes<float>([&]<class V>() __attribute__((always_inline)) {
      for_lanes<V>(0, count, [&](index_t i, auto lanes) __attribute__((always_inline)) {
        lanes.store(to + i, lanes.load(from + i));
      });
    });
  }
}

/// The left operand: its rows. Stored along k, row i begins at data + rows(i) and is made of runs of `run` elements,
/// `run_step` apart; or, with `offset`, element l of row i is data[offset[l] + rows(i)].
template <class S>
struct LeftOperand {
  const S* data = nullptr;
  index_t batch_step = 0;
  RowMap rows;
  index_t run = 1, run_step = 0;
  const index_t* offset = nullptr;  ///< [k]

  index_t along(index_t l) const { return l / run * run_step + l % run; }
};

/// to[l - first][r] for l in [first, last) and tile_rows rows that begin at line[r]: runs of the operand, transposed.
/// Nothing behind the block is written: another thread may have been there.
template <class S>
void pack_block(const LeftOperand<S>& a, const S* const* line, index_t first, index_t last, S* to) {
  with_lanes<S>([&]<class V>() __attribute__((always_inline)) {
    constexpr int lanes = static_cast<int>(LaneTraits<V>::width), groups = (tile_rows + lanes - 1) / lanes;
    for (index_t l = first; l < last;) {
      const index_t within = l % a.run, length = std::min(a.run - within, last - l);
      const index_t begin = a.along(l);
      index_t i = 0;
      for (; i + lanes <= length && l + i + lanes + 2 <= last; i += lanes) {
        V square[groups][lanes];
        unroll<groups>([&](auto g) __attribute__((always_inline)) {
          unroll<lanes>([&](auto r) __attribute__((always_inline)) {
            constexpr int at = g * lanes + r;
            if constexpr (at < tile_rows)
              square[g][r] = load_lanes<V>(line[at] + begin + i);
            else
              square[g][r] = V{};
          });
          transpose_lanes(square[g]);
        });
        // In the order of memory: what is stored behind a row is overwritten with the next two.
        unroll<lanes>([&](auto r) __attribute__((always_inline)) {
          unroll<groups>([&](auto g) __attribute__((always_inline)) {
            store_lanes(to + r * tile_rows + g * lanes, square[g][r]);
          });
        });
        to += lanes * tile_rows;
      }
      for (; i < length; ++i, to += tile_rows)
        for (int r = 0; r < tile_rows; ++r) to[r] = line[r][begin + i];
      l += length;
    }
  });
}

/// All blocks [blocks][last - first][tile_rows] of rows that begin at line, where element l of row r is
/// line[r][offset[l]]: a few lines of memory for all blocks, then the next.
template <class S>
void pack_blocks_across(const S* const* line, index_t blocks, const index_t* offset, index_t first, index_t last,
                        S* to) {
  constexpr index_t together = 16;
  const index_t depth = last - first;
  for (index_t begin = 0; begin < depth; begin += together)
    for (index_t block = 0; block < blocks; ++block) {
      const S* const* row = line + block * tile_rows;
      bool adjacent = true;
      for (int r = 1; r < tile_rows; ++r) adjacent = adjacent && row[r] == row[0] + r;
      S* target = to + (block * depth + begin) * tile_rows;
      const index_t end = std::min(begin + together, depth);
      for (index_t l = begin; l < end; ++l, target += tile_rows) {
        if (adjacent)
          std::memcpy(target, row[0] + offset[first + l], tile_rows * sizeof(S));
        else
          for (int r = 0; r < tile_rows; ++r) target[r] = row[r][offset[first + l]];
      }
    }
}

/// Blocks [blocks][last - first][tile_rows] of rows that begin at line.
template <class S>
void pack_blocks(const LeftOperand<S>& a, const S* const* line, index_t blocks, index_t first, index_t last, S* to) {
  if (a.offset != nullptr) return pack_blocks_across(line, blocks, a.offset, first, last, to);
  for (index_t i = 0; i < blocks; ++i)
    pack_block(a, line + i * tile_rows, first, last, to + i * (last - first) * tile_rows);
}

/// to[l - first][0, valid) for l in [first, last) from lines that begin at from + offset[l]; zeros up to the next
/// register.
template <class S, class T>
void pack_rows(const TileKernel<S>& kernel, const T* from, const index_t* offset, index_t first, index_t last, S* to,
               index_t valid) {
  const index_t columns = kernel.columns(), width = (valid + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
  with_lanes<S>([&]<class V>() __attribute__((always_inline)) {
    constexpr index_t lanes = LaneTraits<V>::width;
    index_t l = first;
    if (valid == 2 * lanes && columns == valid)  // the usual case, in few instructions
      for (; l < last; ++l, to += 2 * lanes) {
        store_lanes(to, load_lanes<V>(from + offset[l]));
        store_lanes(to + lanes, load_lanes<V>(from + offset[l] + lanes));
      }
    for (; l < last; ++l, to += columns) {
      const T* line = from + offset[l];
      index_t j = 0;
      for (; j + lanes <= valid; j += lanes) store_lanes(to + j, load_lanes<V>(line + j));
      for (; j < valid; ++j) to[j] = load_lanes<S>(line + j);
      for (; j < width; ++j) to[j] = S{};
    }
  });
}

/// to[l - first][j] = line[j][l] for l in [first, last) and j < valid; zeros up to the next register.
template <class S, class T>
void pack_columns(const TileKernel<S>& kernel, const T* const* line, index_t first, index_t last, S* to,
                  index_t valid) {
  const index_t columns = kernel.columns(), width = (valid + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
  with_lanes<S>([&]<class V>() __attribute__((always_inline)) {
    constexpr index_t lanes = LaneTraits<V>::width;
    index_t l = first;
    for (; l + lanes <= last && lanes <= columns; l += lanes, to += lanes * columns) {
      for (index_t j = 0; j < width; j += lanes) {
        V square[lanes];
        unroll<lanes>([&](auto i) __attribute__((always_inline)) {
          square[i] = j + i < valid ? load_lanes<V>(line[j + i] + l) : V{};
        });
        transpose_lanes(square);
        unroll<lanes>([&](auto i) __attribute__((always_inline)) { store_lanes(to + i * columns + j, square[i]); });
      }
    }
    for (; l < last; ++l, to += columns)
      for (index_t j = 0; j < width; ++j) to[j] = j < valid ? load_lanes<S>(line[j] + l) : S{};
  });
}

/// The right operand: its columns, of any storage type; 16 bits are widened while they are packed. Stored along k,
/// column j begins at data + lines(j); or, with `offset`, element l of column j is data[offset[l] + j].
template <class S>
struct RightOperand {
  const void* data = nullptr;
  index_t size = sizeof(S);  ///< of an element, in bytes
  index_t batch_step = 0;
  RowMap lines;
  const index_t* offset = nullptr;  ///< [k]
  /// Writes rows [first, last) of the panel that begins at `column`, kernel.columns() apart; null where data is packed.
  void (*pack)(const RightOperand& b, const TileKernel<S>& kernel, index_t item, index_t column, index_t first,
               index_t last, S* to, index_t valid) = nullptr;

  template <class T>
  static RightOperand along_k(const T* data, index_t batch_step, const RowMap& lines) {
    return {data, sizeof(T), batch_step, lines, nullptr, &pack_panel<T>};
  }
  template <class T>
  static RightOperand along_n(const T* data, index_t batch_step, const index_t* offset) {
    return {data, sizeof(T), batch_step, {}, offset, &pack_panel<T>};
  }
  /// An operand for each item of the batch, `batch_step` apart, packed already: [panels, k, kernel.columns()].
  static RightOperand packed(const S* data, index_t batch_step) { return {data, sizeof(S), batch_step, {}, nullptr, nullptr}; }

  const char* element(index_t item, index_t l, index_t column) const {
    const index_t at = offset != nullptr ? offset[l] + column : RowCursor(lines, column).offset() + l;
    return static_cast<const char*>(data) + (item * batch_step + at) * size;
  }

 private:
  template <class T>
  static void pack_panel(const RightOperand& b, const TileKernel<S>& kernel, index_t item, index_t column,
                         index_t first, index_t last, S* to, index_t valid) {
    const T* const from = static_cast<const T*>(b.data) + item * b.batch_step;
    if (b.offset != nullptr) return pack_rows(kernel, from + column, b.offset, first, last, to, valid);
    const T* line[tile_columns_max];
    RowCursor cursor(b.lines, column);
    for (index_t j = 0; j < valid; ++j, cursor.next()) line[j] = from + cursor.offset();
    pack_columns(kernel, line, first, last, to, valid);
  }
};

/// What names the packed form of an n x k right operand, cut into panels of `panel` columns, whose element l of column j lies
/// at place(l, j). `form` tells apart what else packs it.
template <class Place>
PackedWeights::Key packed_key(index_t n, index_t k, index_t panel, index_t form, Place&& place) {
  const auto* const first = place(0, 0);
  const auto behind = [&](index_t l, index_t column) -> index_t {
    return place(std::min(l, k - 1), std::min(column, n - 1)) - first;
  };
  return {first, n, k, form, behind(0, 1), behind(0, panel), behind(0, n), behind(1, 0), behind(k, 0)};
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
