// SPDX-License-Identifier: MIT
// Products of bfloat16 matrices and convolutions on machines that multiply pairs (bfloat16_tile.hpp), cut into jobs.
//
//   out[r, j] = sum_l a(r, l) b(l, j),   r < m, j < n, l < k,   sums in float
//
// A job makes a block of rows x panels, part of k by part of k, as those of product_run.hpp do: for each pair of
// panels, whose part stays near, all tiles of its rows. Rows of A that lie at equal distances are read in place,
// others are packed by the job; so is B where no other job needs the same columns (few rows: one pass over the
// weights), else it is packed once, by all threads, before the jobs (two_phases.hpp). Each element adds up k in order,
// so any cut and any number of threads give the same bits.
#pragma once

#include <utility>

#include <lpo/backend/cpu/bfloat16_tile.hpp>
#include <lpo/backend/cpu/product_pack.hpp>
#include <lpo/backend/cpu/two_phases.hpp>
#include <lpo/backend/cpu/worker_scratch.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Both operands are given by their lines, rows of A and columns of B: LeftOperand says where they lie. With `offset`,
/// lines are adjacent.
struct PairProduct {
  const PairTiles* tiles = pair_tiles().tiles[0];
  index_t m = 0, n = 0, k = 0, batch = 1;
  LeftOperand<bfloat16> a, b;

  index_t groups() const { return (m + pair_lanes - 1) / pair_lanes; }
  index_t panels() const { return (n + pair_lanes - 1) / pair_lanes; }
  index_t blocks() const { return (k + pair_depth - 1) / pair_depth; }
  index_t items() const { return b.batch_step == 0 ? 1 : batch; }  ///< of B

  /// Where element l of column `column` of B lies, in its first item.
  const bfloat16* right_element(index_t l, index_t column) const {
    return b.data + (b.offset != nullptr ? b.offset[l] + column : RowCursor(b.rows, column).offset() + b.along(l));
  }

  /// Whether tiles can read 16 rows in place, of `valid` ones from `row` on: equally far apart, runs in whole blocks.
  bool in_place(index_t row, index_t valid) const {
    return a.offset == nullptr && a.run % pair_depth == 0 && valid == pair_lanes &&
           row % a.rows.columns + pair_lanes <= a.rows.columns;
  }
};

/// Whether products of T run on pairs here.
template <class T>
bool multiplies_pairs() {
  if constexpr (std::is_same_v<T, bfloat16>)
    return machine_multiplies_pairs();
  else
    return false;
}

inline constexpr index_t pair_job_groups = 40;  ///< PairTiles::job_groups, at most

/// Rows (groups of 16) and panels (of 16 columns) of a job.
struct PairCut {
  index_t groups, panels;
};

/// The cut whose jobs take the least time, that of their tiles and of reading both operands once, if threads take jobs
/// as they come and all wait for one that was taken last. Tiles that broadcast get jobs of equal size, as far as that
/// goes: on one thread each job packs its rows again. The cut of AMX was measured on 16 threads without that and stays so.
inline PairCut cut_pairs(const PairProduct& p, int threads) {
  constexpr index_t read = 60;  // cycles to get a block of 1 KiB from the third level
  const index_t groups = p.groups(), panels = p.panels();
  const bool even = p.tiles->broadcasts;
  const index_t place = p.in_place(0, std::min(pair_lanes, p.m)) ? read : read + p.tiles->packing;
  const auto parts = [](index_t count, index_t each) { return (count + each - 1) / each; };
  const auto equal = [&](index_t count, index_t most) {
    return even ? parts(parts(count, parts(count, most)), pair_together) * pair_together : most;
  };
  PairCut best{};
  index_t least = 0;
  for (const index_t most_groups : {std::min(groups, p.tiles->job_groups), index_t{16}, index_t{8}, index_t{4}, index_t{2}})
    for (index_t most_panels = p.tiles->job_panels; most_panels >= 2; most_panels -= 2) {
      if (most_groups > groups || (most_panels > 2 && most_panels >= panels + 2)) continue;
      const index_t height = equal(groups, most_groups), width = equal(panels, most_panels);
      const index_t jobs = p.batch * parts(groups, height) * parts(panels, width);
      const index_t cost = (jobs + threads - (even ? 1 : 0)) *
                           (height * width * p.tiles->cycles + height * place + width * read);
      if (least == 0 || cost < least) least = cost, best = {height, width};
    }
  return best;
}

/// Packs `blocks` blocks of k, `step` elements apart, of 16 lines: `group` of the operand's `count` lines, and the next
/// one, `beside` elements behind, if `groups` is 2. Behind the last line what is stored is anything (line 0) or zero.
template <bool right>
void pack_pairs(const PairTiles& tiles, const LeftOperand<bfloat16>& operand, index_t item, index_t count,
                index_t group, index_t groups, index_t k, index_t first_block, index_t blocks, bfloat16* to,
                index_t step, index_t beside) {
  const bfloat16* data = operand.data + item * operand.batch_step;
  index_t line = group * pair_lanes;
  if (operand.offset != nullptr) {
    const index_t valid = std::min(groups * pair_lanes, count - line);
    return tiles.pack_across[right || tiles.broadcasts](data + line, operand.offset, valid, k, first_block, blocks, to,
                                                        step, beside);
  }
  for (index_t i = 0; i < groups; ++i, line += pair_lanes, to += beside) {
    PairLines lines;
    lines.run = operand.run, lines.run_step = operand.run_step;
    RowCursor cursor(operand.rows, line);
    for (index_t j = 0; j < pair_lanes; ++j, cursor.next())
      lines.line[j] = line + j < count ? data + cursor.offset() : data;
    tiles.pack_lines[right](lines, k, first_block, blocks, to, step);
  }
}

/// What all jobs of a product share.
struct PairJobs {
  const PairProduct& p;
  const TileOutput<bfloat16>& out;
  PairCut cut;
  index_t depth;                ///< of a part of k, in blocks
  bfloat16* right;              ///< [items][pairs of panels][blocks][2] blocks, if B is packed before
  bool kept;                    ///< whether that was done in an earlier product (packed_weights.hpp)
  const float* bias;            ///< [panels rounded up to a pair] in float, if tiles can finish
  const index_t* steps;         ///< [blocks]: where blocks begin in rows that are read in place
  const index_t* packed_steps;  ///< and in packed ones

  static constexpr index_t unit = pair_together * pair_lanes * pair_columns;  // sums of one tile

  index_t left_size() const { return cut.groups * depth * pair_block; }
  index_t right_size() const { return right != nullptr ? 0 : pair_together * depth * pair_block; }
  index_t sums_size() const {
    return depth >= p.blocks() ? unit : (cut.groups + 1) / 2 * ((cut.panels + 1) / 2) * unit;
  }
  /// Floats that a job works in.
  index_t workspace() const { return sums_size() + (left_size() + right_size()) / 2; }

  index_t parts() const { return std::max<index_t>(1, (p.blocks() + packed_together - 1) / packed_together); }
  index_t packs() const { return right == nullptr || kept ? 0 : p.items() * panel_pairs() * parts(); }

  /// Packs one of packs() pieces of B.
  void pack(index_t at) const {
    const index_t pair = at / parts(), item = pair / panel_pairs(), panel = pair % panel_pairs() * pair_together;
    const index_t first = at % parts() * packed_together;
    pack_panels(item, panel, first, std::min(packed_together, p.blocks() - first), right_part(item, panel, first));
  }

  /// Groups [group, group_end) by panels [panel, panel_end); `space`: workspace() floats.
  void run(index_t item, index_t group, index_t group_end, index_t panel, index_t panel_end, float* space) const {
    bfloat16* const left_part = reinterpret_cast<bfloat16*>(space + sums_size());
    bfloat16* const panels_part = left_part + left_size();
    const index_t groups = group_end - group, units = (groups + pair_together - 1) / pair_together;
    index_t offset[pair_job_groups * pair_lanes];
    RowCursor target(out.rows, group * pair_lanes);
    const index_t rows = std::min(groups * pair_lanes, p.m - group * pair_lanes);
    for (index_t r = 0; r < rows; ++r, target.next()) offset[r] = target.offset();
    PairGroup rows_of[pair_job_groups + pair_together];
    index_t first = 0;
    do {
      const index_t blocks = std::min(depth, p.blocks() - first);
      const bool last = first + blocks == p.blocks(), in_parts = depth < p.blocks();
      const index_t last_pairs = last ? (p.k - (p.blocks() - 1) * pair_depth + 1) / 2 : pair_lanes;
      for (index_t i = 0; i < groups; i += pair_together)
        place_left(item, group + i, std::min(pair_together, groups - i), first, blocks,
                   left_part + i * blocks * pair_block, rows_of + i);
      for (index_t i = 0; i < pair_together; ++i) rows_of[groups + i] = rows_of[i % groups];
      for (index_t at = panel; at < panel_end; at += pair_together) {
        const bfloat16* part = panels_part;
        if (right != nullptr)
          part = right_part(item, at, first);
        else
          pack_panels(item, at, first, blocks, panels_part);
        for (index_t i = 0; i < groups; i += pair_together) {
          float* sums = space + (in_parts ? ((at - panel) / pair_together * units + i / pair_together) * unit : 0);
          const index_t rows_here = std::min(pair_columns, rows - i * pair_lanes), column = at * pair_lanes;
          const bool finish = last && bias != nullptr && column + pair_columns <= p.n;
          const PairWork work{std::min(pair_together, groups - i),
                              std::min(pair_together, panel_end - at),
                              blocks,
                              rows_here,
                              last_pairs,
                              rows_of + i,
                              part,
                              sums,
                              first > 0,
                              finish ? out.c + item * out.batch_c + column : nullptr,
                              offset + i * pair_lanes,
                              finish ? bias + column : nullptr};
          p.tiles->run(work);
          if (last && !finish) store(item, sums, offset + i * pair_lanes, rows_here, (group + i) * pair_lanes, at);
        }
      }
      first += blocks;
    } while (first < p.blocks());
  }

 private:
  static constexpr index_t packed_together = 16;

  index_t panel_pairs() const { return (p.panels() + pair_together - 1) / pair_together; }

  bfloat16* right_part(index_t item, index_t panel, index_t first) const {
    const index_t width = std::min(pair_together, p.panels() - panel);
    return right + ((p.items() == 1 ? 0 : item * p.panels() * p.blocks()) + panel * p.blocks() + first * width) *
                       pair_block;
  }

  void pack_panels(index_t item, index_t panel, index_t first, index_t blocks, bfloat16* to) const {
    const index_t width = std::min(pair_together, p.panels() - panel);
    pack_pairs<true>(*p.tiles, p.b, item, p.n, panel, width, p.k, first, blocks, to, width * pair_block, pair_block);
  }

  /// Where `blocks` blocks of k from `first` on of one or two groups are read: in place, or packed at `to`.
  void place_left(index_t item, index_t group, index_t groups, index_t first, index_t blocks, bfloat16* to,
                  PairGroup* placed) const {
    const index_t beside = blocks * pair_block;
    if (p.a.offset != nullptr) {
      pack_pairs<false>(*p.tiles, p.a, item, p.m, group, groups, p.k, first, blocks, to, pair_block, beside);
      for (index_t i = 0; i < groups; ++i)
        placed[i] = p.tiles->broadcasts ? PairGroup{to + i * beside, 2, packed_steps, 2 * pair_lanes}
                                        : PairGroup{to + i * beside, pair_depth, packed_steps, 2};
      return;
    }
    for (index_t i = 0; i < groups; ++i, to += beside) {
      const index_t row = (group + i) * pair_lanes;
      if (p.in_place(row, std::min(pair_lanes, p.m - row))) {
        placed[i] = {p.a.data + item * p.a.batch_step + RowCursor(p.a.rows, row).offset(), p.a.rows.column_step,
                     steps + first, 2};
      } else {
        pack_pairs<false>(*p.tiles, p.a, item, p.m, group + i, 1, p.k, first, blocks, to, pair_block, 0);
        placed[i] = {to, pair_depth, packed_steps, 2};
      }
    }
  }

  /// The sums of one tile.
  void store(index_t item, const float* sums, const index_t* offset, index_t rows, index_t row, index_t panel) const {
    const index_t column = panel * pair_lanes, width = std::min(pair_columns, p.n - column);
    if (out.gated != nullptr)
      return store_gated(out, sums, pair_columns, static_cast<int>(rows), pair_lanes, p.n, row, panel,
                         panel + pair_together);
    store_tile(out, out.c + item * out.batch_c, sums, pair_columns, offset, static_cast<int>(rows), row, column, width);
  }
};

/// Whether C^T = B^T A^T is computed: with few rows of A, lines of B along k are then broadcast from where they are, where
/// they would be transposed for a few tiles. The limits were measured.
inline bool swaps(const PairProduct& p, const TileOutput<bfloat16>& out) {
  return p.tiles->broadcasts && p.m <= 64 && p.k >= 512 && p.b.offset == nullptr && p.b.run % pair_depth == 0 &&
         out.gated == nullptr && out.column_step == 1 && out.rows.lines == 1;
}

/// Runs the product (all items of the batch) on the context's threads.
inline void run_pair_product(Context<Cpu>& context, PairProduct p, TileOutput<bfloat16> out) {
  if (p.m <= 0 || p.n <= 0 || p.batch <= 0) return;
  if (swaps(p, out)) {
    std::swap(p.m, p.n);
    std::swap(p.a, p.b);
    out.bias_by_row = !out.bias_by_row;
    out.column_step = out.rows.column_step;
    out.rows = even_rows(p.m, 1);
  }
  const index_t groups = p.groups(), panels = p.panels(), blocks = p.blocks();
  Scratch<Cpu> scratch(context);
  PairJobs jobs{p,       out,     cut_pairs(p, context.executor().threads()),   std::min(p.tiles->depth, blocks),
                nullptr, false, nullptr, nullptr, even_steps(scratch, blocks, pair_block)};
  index_t* const steps = scratch.allocate<index_t>(blocks);
  for (index_t block = 0, begin = 0, within = 0; block < blocks; ++block) {
    steps[block] = begin + within;
    if ((within += pair_depth) >= p.a.run) within = 0, begin += p.a.run_step;
  }
  jobs.steps = steps;
  const index_t high = (groups + jobs.cut.groups - 1) / jobs.cut.groups,
                wide = (panels + jobs.cut.panels - 1) / jobs.cut.panels;
  const index_t right_size = p.items() * panels * blocks * pair_block;
  if (p.items() == 1 && p.k > 0 && context.packed_weights().promised(p.b.data)) {
    const auto key = packed_key(p.n, p.k, pair_lanes, p.tiles->broadcasts ? -1 : -2,
                                [&](index_t l, index_t column) { return p.right_element(l, column); });
    jobs.right = context.packed_weights().find_or_make<bfloat16>(key, right_size, [&](bfloat16* to) {
      jobs.right = to;
      context.executor().parallel_for(jobs.packs(), 1, [&](index_t begin, index_t end) {
        for (index_t piece = begin; piece < end; ++piece) jobs.pack(piece);
      });
    });
    jobs.kept = true;
  } else if (high * p.batch / p.items() > 1) {
    jobs.right = scratch.allocate<bfloat16>(right_size);
  }
  if (out.gated == nullptr && out.column_step == 1 && out.alpha == 1.0f &&
      out.beta == 0.0f && !(out.bias != nullptr && out.bias_by_row)) {
    float* const bias = scratch.allocate<float>(panels * pair_lanes);
    for (index_t j = 0; j < panels * pair_lanes; ++j)
      bias[j] = out.bias != nullptr && j < p.n ? static_cast<float>(out.bias[j]) : 0.0f;
    jobs.bias = bias;
  }

  WorkerScratch<float> workspace(context, scratch, jobs.workspace());
  run_two_phases(
      context.executor(), jobs.packs(), [&](index_t piece) { jobs.pack(piece); }, p.batch * high * wide,
      [&](index_t job) {
        const WorkerScratch<float>::Lease lease(workspace);
        const index_t group = job % high * jobs.cut.groups, panel = job / high % wide * jobs.cut.panels;
        p.tiles->begin();
        jobs.run(job / (high * wide), group, std::min(groups, group + jobs.cut.groups), panel,
                 std::min(panels, panel + jobs.cut.panels), lease.data());
        p.tiles->end();
      });
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
