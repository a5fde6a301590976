// SPDX-License-Identifier: MIT
// The register-tile product behind the CPU's matrix products and convolutions.
//
//   out[r, j] = sum_l a[row(r) + a_step[l]] * b(l)[j],   r < m, j < n, l < k
//
// Rows of A are addressed through a row map and a table of steps, so that one kernel serves plain and transposed
// matrices and, without im2col, every convolution. B is read as panels of two or four registers, packed or in place.
// One tile keeps 24 accumulators (12 where there are 16 registers); measured at 80-90 % of the FMA peak from k = 64 on.
// The tile is compiled for every instruction set that beats the one of the translation unit and chosen when the program
// runs (TileKernel): no -march is needed for it.
// All splits depend on m, n and k alone and partial sums are added in slice order: any thread count gives the same
// bits.
#pragma once

#include <algorithm>
#include <type_traits>

#include <lpo/backend/cpu/isa.hpp>
#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/base/device.hpp>
#include <lpo/tensor/context.hpp>
#include <lpo/tensor/pack.hpp>
#include <lpo/tensor/tree.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

inline constexpr int tile_rows_max = 8;
inline constexpr index_t tile_columns_max = 64;  // of float, in 512-bit registers
inline constexpr index_t tile_job_rows = 96;     // that a part of a panel serves; a multiple of both tile heights
inline constexpr index_t tile_part_bytes = 32768;  // of a part of a panel, at most

/// The register tile for one instruction set: tiles are up to `packs` registers of `lanes` numbers wide.
///   run[packs - 1](…): out[r][0, packs) = init[r][0, packs) + sum over k. `a`, `init` and `out` hold a pointer per row;
///   without `init` the sums start from zero.
template <class S>
struct TileKernel {
  using Run = void (*)(index_t k, const S* const* a, const index_t* a_step, const S* b, const index_t* b_step,
                       const S* const* init, S* const* out);
  int lanes, packs;
  Run run[4];

  index_t columns() const { return lanes * packs; }
  /// Steps of k after which a tile stops, so that its part of a panel of B stays in the first-level cache for all rows of
  /// a job: measured 0.97 of the FMA peak instead of 0.55 with 256-bit registers.
  index_t depth() const {
    return (packs == 4 ? tile_part_bytes : tile_part_bytes / 2) / (columns() * static_cast<index_t>(sizeof(S)));
  }
  /// Rows of a tile that is `used` registers wide. Job heights are multiples of 24, which both heights divide.
  constexpr int rows(int used) const { return tile_rows(packs, used); }
  static constexpr int tile_rows(int packs, int used) { return packs == 4 && used < 4 ? 8 : 6; }
};

/// The kernel for this machine; tile_kernels() below lists all that run on it.
template <class S>
const TileKernel<S>& tile_kernel();

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
  const TileKernel<S>* kernel = &tile_kernel<S>();
  index_t m = 0, n = 0, k = 0;
  const S* a = nullptr;
  RowMap rows;
  const index_t* a_step = nullptr;  ///< [k]
  const S* b = nullptr;
  const index_t* b_step = nullptr;  ///< [k]
  index_t panel_step = 0;           ///< from one panel of kernel->columns() to the next
  index_t batch = 1, batch_a = 0, batch_b = 0;
  /// Where B is not packed yet: writes rows [first, last) of the panel at `column`, kernel->columns() apart.
  void (*pack)(const void* source, index_t item, index_t column, index_t first, index_t last, S* to,
               index_t valid) = nullptr;
  const void* pack_source = nullptr;
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
  T* gated = nullptr;  ///< see store_gated()
};

/// The body of TileKernel::run in registers of `bytes`. It is inlined into one function per instruction set: what it is
/// compiled to is decided by the target of that function.
template <class S, int bytes, int tile_packs, int packs>
LPO_ALWAYS_INLINE void product_tile(index_t k, const S* const* a, const index_t* a_step, const S* b,
                                    const index_t* b_step, const S* const* init, S* const* out) {
  typedef S V __attribute__((vector_size(bytes)));
  constexpr int rows = TileKernel<S>::tile_rows(tile_packs, packs);
  constexpr int lanes = bytes / static_cast<int>(sizeof(S));
  V sum[rows][packs];
  const S* row[rows];
LPO_UNROLL(8)
  for (int r = 0; r < rows; ++r) {
    row[r] = a[r];
LPO_UNROLL(4)
    for (int p = 0; p < packs; ++p) {
      sum[r][p] = V{};
      if (init != nullptr) std::memcpy(&sum[r][p], init[r] + p * lanes, sizeof(V));
    }
  }
  for (index_t l = 0; l < k; ++l) {
    const index_t at = a_step[l];
    const S* line = b + b_step[l];
    V right[packs];
LPO_UNROLL(4)
    for (int p = 0; p < packs; ++p) std::memcpy(&right[p], line + p * lanes, sizeof(V));
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

/// Defines the kernel `Name` whose tiles have the function attribute `target`.
#define LPO_TILE_KERNEL(Name, bytes, tile_packs, target)                                                           \
  template <class S>                                                                                               \
  struct Name {                                                                                                    \
    template <int packs>                                                                                           \
    target static __attribute__((noinline)) void run(index_t k, const S* const* a, const index_t* a_step,          \
                                                     const S* b, const index_t* b_step, const S* const* init,      \
                                                     S* const* out) {                                              \
      product_tile<S, bytes, tile_packs, packs>(k, a, a_step, b, b_step, init, out);                               \
      if constexpr (bytes > LPO_SIMD_BYTES) LPO_LEAVE_WIDE_REGISTERS();                                            \
    }                                                                                                              \
    static constexpr TileKernel<S> kernel{bytes / static_cast<int>(sizeof(S)),                                     \
                                          tile_packs,                                                              \
                                          {&run<1>, &run<2>, &run<tile_packs == 4 ? 3 : 2>, &run<tile_packs>}};    \
  };
LPO_TILE_KERNEL(NativeTile, LPO_SIMD_BYTES, (LPO_SIMD_BYTES == 64 ? 4 : 2), )
#if defined(LPO_TARGET_256)
LPO_TILE_KERNEL(Tile256, 32, 2, LPO_TARGET_256)
#endif
#if defined(LPO_TARGET_512)
LPO_TILE_KERNEL(Tile512, 64, 4, LPO_TARGET_512)
#endif
#undef LPO_TILE_KERNEL

/// The kernels that run on this machine, the widest first.
template <class S>
struct TileKernels {
  const TileKernel<S>* kernel[3] = {};
  int count = 0;

  TileKernels() {
    [[maybe_unused]] const int bytes = machine_simd_bytes();
#if defined(LPO_TARGET_512)
    if (bytes >= 64) kernel[count++] = &Tile512<S>::kernel;
#endif
#if defined(LPO_TARGET_256)
    if (bytes >= 32) kernel[count++] = &Tile256<S>::kernel;
#endif
    kernel[count++] = &NativeTile<S>::kernel;
  }
};

template <class S>
const TileKernels<S>& tile_kernels() {
  static const TileKernels<S> kernels;
  return kernels;
}

template <class S>
const TileKernel<S>& tile_kernel() {
  return *tile_kernels<S>().kernel[0];
}

/// store_tile() where C is written transposed, down its rows, which are our columns.
template <class S, class T>
void store_columns(const TileOutput<T>& out, T* c, const S* sums, index_t sums_step, const index_t* offset, int count,
                   index_t row, index_t column, index_t width) {
  const S alpha = static_cast<S>(out.alpha), beta = static_cast<S>(out.beta);
  const bool by_row = out.bias != nullptr && out.bias_by_row, by_column = out.bias != nullptr && !out.bias_by_row;
  index_t j = 0;
  if constexpr (std::is_same_v<S, float>) {
    if (count == pack_width && offset[count - 1] == offset[0] + count - 1) {
      const Pack add = by_row ? load_all<Pack>(out.bias + row) : Pack{};
      for (; j + pack_width <= width; j += pack_width) {
        Pack lines[pack_width];
        for (int r = 0; r < pack_width; ++r) lines[r] = load_pack(sums + r * sums_step + j);
        transpose_lanes(lines);
        for (int i = 0; i < pack_width; ++i) {
          T* to = c + (column + j + i) * out.column_step + offset[0];
          Pack value = lines[i] * alpha + add;
          if (out.beta != 0.0f) value += load_all<Pack>(to) * beta;
          if (by_column) value += load_lanes<S>(out.bias + column + j + i);
          store_lanes(to, value);
        }
      }
    }
  }
  for (; j < width; ++j) {
    T* to = c + (column + j) * out.column_step;
    for (int r = 0; r < count; ++r) {
      S value = sums[r * sums_step + j] * alpha + (by_row ? load_lanes<S>(out.bias + row + r) : S{});
      if (out.beta != 0.0f) value += load_lanes<S>(to + offset[r]) * beta;
      if (by_column) value += load_lanes<S>(out.bias + column + j);
      store_lanes(to + offset[r], value);
    }
  }
}

/// Stores `width` finished sums of `count` rows, whose offsets in C are `offset`; `column` and `row` index the bias.
template <class S, class T>
void store_tile(const TileOutput<T>& out, T* c, const S* sums, index_t sums_step, const index_t* offset, int count,
                index_t row, index_t column, index_t width) {
  if (out.column_step != 1) return store_columns(out, c, sums, sums_step, offset, count, row, column, width);
  const S alpha = static_cast<S>(out.alpha), beta = static_cast<S>(out.beta);
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

/// The end of a product with a gate (kernel/gated_product.hpp), whose panels alternate between values and gates: from
/// sums of one row in panels [panel, panel_end), both even, `out.gated` [m, n / 2] and, if not null, out.c [m, n].
template <class T>
void store_gated(const TileOutput<T>& out, const float* sums, index_t columns, index_t n, index_t row, index_t panel,
                 index_t panel_end) {
  const index_t hidden = n / 2;
  T both[2 * pack_width];
  for (; panel < panel_end; panel += 2, sums += 2 * columns)
    for (index_t j = 0; j < columns; j += pack_width) {
      const index_t column = panel / 2 * columns + j;
      T* const value = out.c == nullptr ? both : out.c + row * n + column;
      T* const gate = out.c == nullptr ? both + pack_width : out.c + row * n + hidden + column;
      Pack value_sum = load_pack(sums + j), gate_sum = load_pack(sums + columns + j);
      if (out.bias != nullptr) {
        value_sum += load_all<Pack>(out.bias + column);
        gate_sum += load_all<Pack>(out.bias + hidden + column);
      }
      store_lanes(value, value_sum);
      store_lanes(gate, gate_sum);
      store_lanes(out.gated + row * hidden + column, load_all<Pack>(value) * op::Gelu::value(load_all<Pack>(gate)));
    }
}

/// Rows [row, row_end) x panels [panel, panel_end) over k in [first, last) of one product. A part of k is done for all
/// panels before the next one, so that its piece of A is read from the second-level cache by all but the first.
template <class S, class T>
void product_job(const TileProduct<S>& p, index_t item, const TileOutput<T>& out, T* c, const S* bias, index_t row,
                 index_t row_end, index_t panel, index_t panel_end, index_t first, index_t last) {
  constexpr index_t most = tile_job_rows;
  constexpr index_t kept = 2 * tile_columns_max * 4 / static_cast<index_t>(sizeof(S));
  const TileKernel<S>& kernel = *p.kernel;
  const index_t columns = kernel.columns();
  const bool plain = std::is_same_v<S, T> && out.gated == nullptr && out.alpha == 1.0f && out.beta == 0.0f &&
                     out.column_step == 1 && p.n % kernel.lanes == 0 && (out.bias == nullptr || bias != nullptr);
  // Sums that do not go straight to C wait here, for as many panels as fit.
  alignas(64) S sums[(most + tile_rows_max) * kept];
  alignas(64) S part[tile_part_bytes / sizeof(S)];  // of a panel that is packed here
  const S* const a = p.a + item * p.batch_a;
  const index_t together = plain ? panel_end - panel : kept / columns;
  const S* left[most + tile_rows_max];
  const S* init[most + tile_rows_max];
  S* to[most + tile_rows_max];
  index_t offset[most];
  for (; row < row_end; row += most) {
    const int count = static_cast<int>(std::min(most, row_end - row));
    RowCursor source(p.rows, row), target(out.rows, row);
    for (int i = 0; i < count; ++i, source.next(), target.next()) {
      left[i] = a + source.offset();
      offset[i] = target.offset();
    }
    for (int i = count; i < count + tile_rows_max; ++i) left[i] = left[0];  // computed and dropped
    for (index_t group = panel; group < panel_end; group += together) {
      const index_t group_end = std::min(panel_end, group + together);
      index_t l = first;
      do {
        const index_t depth = std::min(kernel.depth(), last - l);
        for (index_t at = group; at < group_end; ++at) {
          const int packs =
              static_cast<int>((std::min(columns, p.n - at * columns) + kernel.lanes - 1) / kernel.lanes);
          const int rows = kernel.rows(packs);
          const auto run = kernel.run[packs - 1];
          for (int i = 0; i < count + tile_rows_max; ++i) {
            to[i] = sums + i * kept + (plain ? 0 : (at - group) * columns);
            if constexpr (std::is_same_v<S, T>) {
              if (plain && i < count) to[i] = c + offset[i] + at * columns;
            }
            init[i] = to[i];
            if (l == first && plain && bias != nullptr) init[i] = bias + at * columns;
          }
          const bool begun = l > first || (plain && bias != nullptr);
          const S* b = p.b + item * p.batch_b + at * p.panel_step;
          const index_t* b_step = p.b_step + l;
          if (p.pack != nullptr) {
            p.pack(p.pack_source, item, at * columns, l, l + depth, part, std::min(columns, p.n - at * columns));
            b = part, b_step = p.b_step;
          }
          for (int r = 0; r < count; r += rows)
            run(depth, left + r, p.a_step + l, b, b_step, begun ? init + r : nullptr, to + r);
        }
        l += depth;
      } while (l < last);
      if constexpr (std::is_same_v<S, float>) {
        if (out.gated != nullptr) {
          for (int r = 0; r < count; ++r)
            store_gated(out, sums + r * kept, columns, p.n, row + r, group, group_end);
          continue;
        }
      }
      const index_t width = std::min(group_end * columns, p.n) - group * columns;
      constexpr int together_rows = LaneTraits<lanes_t<S>>::width;  // what store_columns() transposes
      for (int r = 0; r < count && !plain; r += together_rows)
        store_tile(out, c, sums + r * kept, kept, offset + r, std::min(together_rows, count - r), row + r,
                   group * columns, width);
    }
  }
}

/// How a product is cut, from its extents alone: rows per job, panels per job, length of a slice of k.
struct ProductCut {
  index_t rows, panels, slice;
};

inline ProductCut cut_product(index_t m, index_t n, index_t k, index_t columns, index_t batch) {
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
  // A product with few rows and columns is also split over k, for the threads' sake.
  const index_t slices = jobs < 64 && k >= 2048 ? std::min((k + 1023) / 1024, (63 + jobs) / jobs) : 1;
  return {rows, wide, (k + slices - 1) / slices};
}

/// Runs the product (all items of the batch) on the context's threads.
template <class S, class T>
void run_product(Context<Cpu>& context, const TileProduct<S>& p, const TileOutput<T>& out) {
  if (p.m <= 0 || p.n <= 0 || p.batch <= 0) return;
  const index_t columns = p.kernel->columns();
  ProductCut cut = cut_product(p.m, p.n, p.k, columns, p.batch);
  if (out.gated != nullptr) cut.panels = (cut.panels + 1) / 2 * 2, cut.slice = std::max<index_t>(p.k, 1);
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
        product_job(p, item, out, out.c + item * out.batch_c, bias, row, std::min(p.m, row + cut.rows), panel,
                    std::min(panels, panel + cut.panels), 0, p.k);
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
      product_job(p, item, partial, parts + part * p.m * p.n, static_cast<const S*>(nullptr), row,
                  std::min(p.m, row + cut.rows), panel, std::min(panels, panel + cut.panels), first,
                  std::min(p.k, first + cut.slice));
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
