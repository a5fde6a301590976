// SPDX-License-Identifier: MIT
// The register-tile product behind the CPU's matrix products and convolutions.
//
//   out[r, j] = sum_l a[row(r) + a_step[l]] * b(l)[j],   r < m, j < n, l < k
//
// Rows of A are addressed through a row map and a table of steps, so that one kernel serves plain and transposed
// matrices and, without im2col, every convolution. B is read as panels of `tile_packs` registers, packed or in place.
// One tile keeps 24 accumulators (12 where there are 16 registers); measured at 80-90 % of the FMA peak from k = 64 on.
// All splits depend on m, n and k alone and partial sums are added in slice order: any thread count gives the same
// bits.
#pragma once

#include <algorithm>
#include <type_traits>

#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/base/device.hpp>
#include <lpo/tensor/context.hpp>
#include <lpo/tensor/pack.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

typedef double PackDouble __attribute__((vector_size(LPO_SIMD_BYTES)));
template <class S>
using TilePack = std::conditional_t<std::is_same_v<S, double>, PackDouble, Pack>;

template <class S>
inline constexpr int tile_lanes = LPO_SIMD_BYTES / static_cast<int>(sizeof(S));
inline constexpr int tile_packs = LPO_SIMD_BYTES == 64 ? 4 : 2;
template <class S>
inline constexpr index_t tile_columns = tile_packs* tile_lanes<S>;
inline constexpr int tile_rows_max = 8;
/// Rows of a tile that is `packs` registers wide. Job heights are multiples of 24, which both heights divide.
constexpr int tile_rows(int packs) { return tile_packs == 4 && packs < 4 ? 8 : 6; }

/// Offsets of rows that enumerate (image, line, column).
struct RowMap {
  index_t columns = 1, lines = 1;
  index_t column_step = 0, line_step = 0, image_step = 0;
};

/// `count` rows at a constant distance.
inline RowMap even_rows(index_t count, index_t step) { return {std::max<index_t>(count, 1), 1, step, 0, 0}; }

/// Walks the rows of a map without dividing at each.
class RowCursor {
 public:
  RowCursor(const RowMap& map, index_t row)
      : map_(map), column_(row % map.columns), line_(row / map.columns % map.lines) {
    offset_ = column_ * map.column_step + line_ * map.line_step + row / map.columns / map.lines * map.image_step;
  }
  index_t offset() const { return offset_; }
  void next() {
    offset_ += map_.column_step;
    if (++column_ < map_.columns) return;
    column_ = 0;
    offset_ += map_.line_step - map_.columns * map_.column_step;
    if (++line_ < map_.lines) return;
    line_ = 0;
    offset_ += map_.image_step - map_.lines * map_.line_step;
  }

 private:
  const RowMap& map_;
  index_t column_, line_, offset_;
};

/// Operands of a product. Columns are read in whole registers: behind the last column of B there must be readable
/// memory up to a multiple of the lanes.
template <class S>
struct TileProduct {
  index_t m = 0, n = 0, k = 0;
  const S* a = nullptr;
  RowMap rows;
  const index_t* a_step = nullptr;  ///< [k]
  const S* b = nullptr;
  const index_t* b_step = nullptr;  ///< [k]
  index_t panel_step = 0;           ///< from one panel of tile_columns to the next
  index_t batch = 1, batch_a = 0, batch_b = 0;
};

/// Where and how a product is stored: c[rows(r) + j * column_step] = alpha * out + beta * c + bias.
template <class T>
struct TileOutput {
  T* c = nullptr;
  RowMap rows;
  index_t column_step = 1;
  float alpha = 1.0f, beta = 0.0f;
  const T* bias = nullptr;   ///< by column, or
  bool bias_by_row = false;  ///< by row
  index_t batch_c = 0;
};

/// One tile: out[r][0, packs) = init + sum over k. `a` and `out` hold a pointer per row.
template <class S, int packs>
__attribute__((noinline)) void product_tile(index_t k, const S* const* a, const index_t* a_step, const S* b,
                                            const index_t* b_step, const S* init, S* const* out) {
  using V = TilePack<S>;
  constexpr int rows = tile_rows(packs);
  constexpr int lanes = tile_lanes<S>;
  V sum[rows][packs];
  const S* row[rows];
LPO_UNROLL(8)
  for (int r = 0; r < rows; ++r) {
    row[r] = a[r];
LPO_UNROLL(4)
    for (int p = 0; p < packs; ++p) {
      sum[r][p] = V{};
      if (init != nullptr) std::memcpy(&sum[r][p], init + p * lanes, sizeof(V));
    }
  }
  const index_t ahead = k > 1 ? 4 * (b_step[1] - b_step[0]) : 0;  // a panel lives in L2: fetched four steps early
  for (index_t l = 0; l < k; ++l) {
    const index_t at = a_step[l];
    const S* line = b + b_step[l];
    V right[packs];
LPO_UNROLL(4)
    for (int p = 0; p < packs; ++p) {
      std::memcpy(&right[p], line + p * lanes, sizeof(V));
      __builtin_prefetch(line + ahead + p * lanes);
    }
LPO_UNROLL(8)
    for (int r = 0; r < rows; ++r) {
      const V left = row[r][at] - V{};  // x - 0 is x for every x, so this is a broadcast and no addition
LPO_UNROLL(4)
      for (int p = 0; p < packs; ++p) sum[r][p] += left * right[p];
    }
  }
LPO_UNROLL(8)
  for (int r = 0; r < rows; ++r) {
LPO_UNROLL(4)
    for (int p = 0; p < packs; ++p) std::memcpy(out[r] + p * lanes, &sum[r][p], sizeof(V));
  }
}

template <class S>
void product_tile(int packs, index_t k, const S* const* a, const index_t* a_step, const S* b, const index_t* b_step,
                  const S* init, S* const* out) {
  switch (packs) {
    case 1:
      return product_tile<S, 1>(k, a, a_step, b, b_step, init, out);
    case 2:
      return product_tile<S, 2>(k, a, a_step, b, b_step, init, out);
    case 3:
      return product_tile<S, std::min(3, tile_packs)>(k, a, a_step, b, b_step, init, out);
    default:
      return product_tile<S, tile_packs>(k, a, a_step, b, b_step, init, out);
  }
}

/// Stores `width` finished sums of `count` rows, whose offsets in C are `offset`; `column` and `row` index the bias.
template <class S, class T>
void store_tile(const TileOutput<T>& out, T* c, const S* sums, index_t sums_step, const index_t* offset, int count,
                index_t row, index_t column, index_t width) {
  const S alpha = static_cast<S>(out.alpha), beta = static_cast<S>(out.beta);
  if (out.column_step != 1) {  // C is written transposed: down its rows, which are our columns
    S add[tile_rows_max] = {};
    for (int r = 0; r < count && out.bias_by_row && out.bias != nullptr; ++r)
      add[r] = load_lanes<S>(out.bias + row + r);
    for (index_t j = 0; j < width; ++j) {
      T* to = c + (column + j) * out.column_step;
      for (int r = 0; r < count; ++r) {
        S value = sums[r * sums_step + j] * alpha + add[r];
        if (out.beta != 0.0f) value += load_lanes<S>(to + offset[r]) * beta;
        if (out.bias != nullptr && !out.bias_by_row) value += load_lanes<S>(out.bias + column + j);
        store_lanes(to + offset[r], value);
      }
    }
    return;
  }
  for (int r = 0; r < count; ++r) {
    const S* from = sums + r * sums_step;
    T* to = c + offset[r] + column;
    const bool by_row = out.bias != nullptr && out.bias_by_row;
    const S row_bias = by_row ? load_lanes<S>(out.bias + row + r) : S{};
    auto store = [&]<class V>(index_t j) {
      V value = load_lanes<V>(from + j) * alpha;
      if (out.beta != 0.0f) value += load_lanes<V>(to + j) * beta;
      if (out.bias != nullptr)
        value += out.bias_by_row ? broadcast_lanes<V>(row_bias) : load_lanes<V>(out.bias + column + j);
      store_lanes(to + j, value);
    };
    index_t j = 0;
    if constexpr (std::is_same_v<S, float>)
      for (; j + pack_width <= width; j += pack_width) store.template operator()<Pack>(j);
    for (; j < width; ++j) store.template operator()<S>(j);
  }
}

/// Rows [row, row_end) x panels [panel, panel_end) over k in [first, last) of one product.
template <class S, class T>
void product_job(const TileProduct<S>& p, const S* a, const S* b, const TileOutput<T>& out, T* c, const S* bias,
                 index_t row, index_t row_end, index_t panel, index_t panel_end, index_t first, index_t last) {
  constexpr index_t columns = tile_columns<S>;
  constexpr int lanes = tile_lanes<S>;
  const bool plain = std::is_same_v<S, T> && out.alpha == 1.0f && out.beta == 0.0f && out.column_step == 1 &&
                     (out.bias == nullptr || bias != nullptr);
  alignas(64) S tile[tile_rows_max * columns];
  for (; panel < panel_end; ++panel) {
    const index_t width = std::min(columns, p.n - panel * columns);
    const int packs = static_cast<int>((width + lanes - 1) / lanes);
    const int rows = tile_rows(packs);
    const S* right = b + panel * p.panel_step;
    const S* init = bias == nullptr ? nullptr : bias + panel * columns;
    RowCursor left(p.rows, row), target(out.rows, row);
    for (index_t r = row; r < row_end; r += rows) {
      const int count = static_cast<int>(std::min<index_t>(rows, row_end - r));
      const S* left_rows[tile_rows_max];
      index_t offset[tile_rows_max];
      S* to[tile_rows_max];
      for (int i = 0; i < count; ++i, left.next(), target.next()) {
        left_rows[i] = a + left.offset();
        offset[i] = target.offset();
      }
      for (int i = count; i < rows; ++i) left_rows[i] = left_rows[0];  // computed and dropped
      for (int i = 0; i < rows; ++i) to[i] = tile + i * columns;
      if constexpr (std::is_same_v<S, T>) {
        if (plain && count == rows && width == packs * lanes) {
          for (int i = 0; i < rows; ++i) to[i] = c + offset[i] + panel * columns;
          product_tile(packs, last - first, left_rows, p.a_step + first, right, p.b_step + first, init, to);
          continue;
        }
      }
      product_tile<S>(packs, last - first, left_rows, p.a_step + first, right, p.b_step + first, nullptr, to);
      store_tile(out, c, tile, columns, offset, count, r, panel * columns, width);
    }
  }
}

/// How a product is cut, from its extents alone: rows per job, panels per job, length of a slice of k.
struct ProductCut {
  index_t rows, panels, slice;
};

inline ProductCut cut_product(index_t m, index_t n, index_t k, index_t columns, index_t batch, index_t b_line) {
  const double target = 2e6;  // operations per job, about 10 us
  const index_t panels = (n + columns - 1) / columns;
  const double per_row =
      2.0 * static_cast<double>(std::max<index_t>(n, 1)) * static_cast<double>(std::max<index_t>(k, 1));
  // Where B does not stay in L2, each panel is used for more rows.
  const index_t least = n * k > 128 * 1024 ? 96 : 24;
  index_t rows = static_cast<index_t>(std::min(target / per_row, static_cast<double>(m)));
  rows = std::max(least, (rows + 23) / 24 * 24);
  const double per_panel = per_row / static_cast<double>(n) * static_cast<double>(columns * std::min(rows, m));
  const index_t wide = std::clamp<index_t>(static_cast<index_t>(target / per_panel), 1, panels);
  const index_t jobs = batch * ((m + rows - 1) / rows) * ((panels + wide - 1) / wide);
  // The lines of a slice of one panel should stay in L2: half a MiB of it, less where distant lines share cache sets.
  const index_t longest = b_line > 2 * columns ? 512 : 2048;
  index_t slices = (k + longest - 1) / longest;
  // A product with few rows and columns is also split over k, for the threads' sake.
  if (jobs < 16 && k >= 2048) slices = std::max(slices, std::min((k + 1023) / 1024, (15 + jobs) / jobs));
  slices = std::max<index_t>(slices, 1);
  return {rows, wide, (k + slices - 1) / slices};
}

/// Runs the product (all items of the batch) on the context's threads.
template <class S, class T>
void run_product(Context<Cpu>& context, const TileProduct<S>& p, const TileOutput<T>& out) {
  if (p.m <= 0 || p.n <= 0 || p.batch <= 0) return;
  constexpr index_t columns = tile_columns<S>;
  const ProductCut cut = cut_product(p.m, p.n, p.k, columns, p.batch, p.k > 1 ? p.b_step[1] - p.b_step[0] : 0);
  const index_t panels = (p.n + columns - 1) / columns;
  const index_t row_jobs = (p.m + cut.rows - 1) / cut.rows, panel_jobs = (panels + cut.panels - 1) / cut.panels;
  const index_t slices = p.k <= cut.slice ? 1 : (p.k + cut.slice - 1) / cut.slice;
  const index_t jobs = row_jobs * panel_jobs;
  Executor& executor = context.executor();
  Scratch<Cpu> scratch(context);

  if (slices == 1) {
    S* bias = nullptr;
    if (out.bias != nullptr && !out.bias_by_row) {
      bias = scratch.allocate<S>(panels * columns);
      for (index_t j = 0; j < panels * columns; ++j) bias[j] = j < p.n ? load_lanes<S>(out.bias + j) : S{};
    }
    executor.parallel_for(p.batch * jobs, 1, [&](index_t begin, index_t end) {
      for (index_t job = begin; job < end; ++job) {
        const index_t item = job / jobs, row = job % jobs % row_jobs * cut.rows,
                      panel = job % jobs / row_jobs * cut.panels;
        product_job(p, p.a + item * p.batch_a, p.b + item * p.batch_b, out, out.c + item * out.batch_c, bias, row,
                    std::min(p.m, row + cut.rows), panel, std::min(panels, panel + cut.panels), 0, p.k);
      }
    });
    return;
  }

  S* parts = scratch.allocate<S>(p.batch * slices * p.m * p.n);  // [batch, slices, m, n]
  executor.parallel_for(p.batch * slices * jobs, 1, [&](index_t begin, index_t end) {
    for (index_t job = begin; job < end; ++job) {
      const index_t part = job / jobs, item = part / slices, first = part % slices * cut.slice;
      const index_t row = job % jobs % row_jobs * cut.rows, panel = job % jobs / row_jobs * cut.panels;
      TileOutput<S> partial;
      partial.rows = even_rows(p.m, p.n);
      product_job(p, p.a + item * p.batch_a, p.b + item * p.batch_b, partial, parts + part * p.m * p.n,
                  static_cast<const S*>(nullptr), row, std::min(p.m, row + cut.rows), panel,
                  std::min(panels, panel + cut.panels), first, std::min(p.k, first + cut.slice));
    }
  });
  const index_t grain = std::max<index_t>(1, 65536 / (slices * p.n));
  executor.parallel_for(p.batch * p.m, grain, [&](index_t begin, index_t end) {
    for (index_t at = begin; at < end; ++at) {
      const index_t item = at / p.m, row = at % p.m;
      S* sums = parts + (item * slices * p.m + row) * p.n;
      for (index_t slice = 1; slice < slices; ++slice) {
        const S* more = sums + slice * p.m * p.n;
        for_lanes<lanes_t<S>>(
            0, p.n, [&](index_t j, auto lanes) { lanes.store(sums + j, lanes.load(sums + j) + lanes.load(more + j)); });
      }
      const index_t offset = RowCursor(out.rows, row).offset();
      store_tile(out, out.c + item * out.batch_c, sums, p.n, &offset, 1, row, 0, p.n);
    }
  });
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
