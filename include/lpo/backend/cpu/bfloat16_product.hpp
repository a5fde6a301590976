// SPDX-License-Identifier: MIT
// Products of bfloat16 matrices and convolutions on machines that multiply pairs (bfloat16_tile.hpp), packed per job.
//
//   out[r, j] = sum_l a(r, l) b(l, j),   r < m, j < n, l < k,   sums in float
//
// A job makes a block of rows x panels, part of k by part of k. Rows of A that lie at equal distances are read in
// place, others are packed into a buffer of the thread, and so is B where no other job needs the same columns (few
// rows: one pass over the weights, one dispatch); else B is packed once before. Each element adds up k in order, so any
// cut and any number of threads give the same bits.
#pragma once

#include <lpo/backend/cpu/bfloat16_tile.hpp>
#include <lpo/backend/cpu/product_pack.hpp>
#include <lpo/backend/cpu/worker_scratch.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// An operand: rows of A or columns of B, its lines. Stored along k, line i begins at data + rows(i) and is made of
/// runs of `run` elements, `run_step` apart; or, with `offset`, element l of line i is data[offset[l] + i].
struct PairOperand {
  const bfloat16* data = nullptr;
  index_t batch_step = 0;
  RowMap rows;
  index_t run = 1, run_step = 0;
  const index_t* offset = nullptr;  ///< [k]
};

struct PairProduct {
  const PairTiles* tiles = pair_tiles().tiles[0];
  index_t m = 0, n = 0, k = 0, batch = 1;
  PairOperand a, b;
};

/// Whether products of T run on pairs here.
template <class T>
bool multiplies_pairs() {
  if constexpr (std::is_same_v<T, bfloat16>)
    return pair_tiles().count > 0;
  else
    return false;
}

/// Whether tiles can read 16 lines in place, of `valid` ones that begin at `line`: equally far apart, runs in whole
/// blocks.
inline bool in_place(const PairOperand& operand, index_t line, index_t valid) {
  return operand.offset == nullptr && operand.run % pair_depth == 0 && valid == pair_lanes &&
         line % operand.rows.columns + pair_lanes <= operand.rows.columns;
}

inline constexpr index_t pair_job_groups = 16;

/// Rows (groups of 16, at most pair_job_groups) and panels (of 16 columns) of a job.
struct PairCut {
  index_t groups, panels;
};

/// The cut whose jobs take the least time, that of their tiles and of reading both operands once, if threads take jobs
/// as they come and all wait for one that was taken last.
inline PairCut cut_pairs(const PairTiles& tiles, index_t groups, index_t panels, index_t batch, int threads) {
  constexpr index_t read = 60;  // cycles to get a block of 1 KiB from the third level
  const index_t heights[] = {std::min(groups, pair_job_groups), 16, 8, 4, 2};
  PairCut best{};
  index_t least = 0;
  for (const index_t height : heights)
    for (index_t width = 16; width >= 2; width -= 2) {
      if (height > groups || (width > 2 && width >= panels + 2)) continue;
      const index_t jobs = batch * ((groups + height - 1) / height) * ((panels + width - 1) / width);
      const index_t cost = (jobs + threads) * (height * width * tiles.cycles + (height + width) * read);
      if (least == 0 || cost < least) least = cost, best = {height, width};
    }
  return best;
}

/// Packs `blocks` blocks of k of 16 lines, `group` of the operand's `count` lines; behind the last one line 0 is
/// repeated.
template <bool right>
void pack_pairs(const PairTiles& tiles, const PairOperand& operand, index_t item, index_t count, index_t group,
                index_t k, index_t first_block, index_t blocks, bfloat16* to) {
  const bfloat16* data = operand.data + item * operand.batch_step;
  const index_t line = group * pair_lanes, valid = std::min(pair_lanes, count - line);
  if (operand.offset != nullptr)
    return tiles.pack_across[right](data + line, operand.offset, valid, k, first_block, blocks, to);
  PairLines lines;
  lines.run = operand.run, lines.run_step = operand.run_step;
  RowCursor cursor(operand.rows, line);
  for (index_t i = 0; i < pair_lanes; ++i, cursor.next()) lines.line[i] = i < valid ? data + cursor.offset() : data;
  tiles.pack_lines[right](lines, k, first_block, blocks, to);
}

/// Runs the product (all items of the batch) on the context's threads.
inline void run_pair_product(Context<Cpu>& context, const PairProduct& p, const TileOutput<bfloat16>& out) {
  if (p.m <= 0 || p.n <= 0 || p.batch <= 0) return;
  const index_t groups = (p.m + pair_lanes - 1) / pair_lanes, panels = (p.n + pair_lanes - 1) / pair_lanes;
  const index_t blocks = (p.k + pair_depth - 1) / pair_depth, depth = std::min(p.tiles->depth, blocks);
  Executor& executor = context.executor();
  const PairCut cut = cut_pairs(*p.tiles, groups, panels, p.batch, executor.threads());
  const index_t row_jobs = (groups + cut.groups - 1) / cut.groups, panel_jobs = (panels + cut.panels - 1) / cut.panels;
  Scratch<Cpu> scratch(context);
  const index_t* packed_steps = even_steps(scratch, depth, pair_block);
  index_t* steps = scratch.allocate<index_t>(blocks);  // where blocks begin in lines that are read in place
  for (index_t block = 0, l = 0; block < blocks && p.a.offset == nullptr; ++block, l += pair_depth)
    steps[block] = l / p.a.run * p.a.run_step + l % p.a.run;

  const index_t items = p.b.batch_step == 0 ? 1 : p.batch, item_size = panels * blocks * pair_block;
  bfloat16* packed = nullptr;  // [items, panels, blocks]
  if (row_jobs * p.batch / items > 1) {
    packed = scratch.allocate<bfloat16>(items * item_size);
    const index_t parts = (blocks + 31) / 32;
    executor.parallel_for(items * panels * parts, std::max<index_t>(1, 64 / std::min<index_t>(blocks + 1, 32)),
                          [&](index_t begin, index_t end) {
      for (index_t at = begin; at < end; ++at) {
        const index_t item = at / (panels * parts), panel = at / parts % panels, first = at % parts * 32;
        pack_pairs<true>(*p.tiles, p.b, item, p.n, panel, p.k, first, std::min<index_t>(32, blocks - first),
                         packed + item * item_size + (panel * blocks + first) * pair_block);
      }
    });
  }

  const index_t left_size = cut.groups * depth * pair_block, right_size = packed ? 0 : cut.panels * depth * pair_block;
  const index_t width = cut.panels * pair_lanes, sums_size = cut.groups * pair_lanes * width;
  WorkerScratch<float> workspace(context, scratch, (left_size + right_size) / 2 + sums_size);
  executor.parallel_for(p.batch * row_jobs * panel_jobs, 1, [&](index_t begin, index_t end) {
    const WorkerScratch<float>::Lease lease(workspace);
    float* const sums = lease.data();
    bfloat16* const left = reinterpret_cast<bfloat16*>(sums + sums_size);
    bfloat16* const right = left + left_size;
    for (index_t job = begin; job < end; ++job) {
      const index_t item = job / (row_jobs * panel_jobs), group = job % row_jobs * cut.groups,
                    panel = job / row_jobs % panel_jobs * cut.panels;
      PairGroup rows_of[pair_job_groups];
      PairWork work{std::min(cut.groups, groups - group), std::min(cut.panels, panels - panel), 0, rows_of, right, 0,
                    sums, width, false};
      if (blocks == 0) std::fill_n(sums, sums_size, 0.0f);
      for (index_t first = 0; first < blocks; first += depth) {
        work.blocks = std::min(depth, blocks - first);
        for (index_t i = 0; i < work.groups; ++i) {
          const index_t line = (group + i) * pair_lanes;
          if (in_place(p.a, line, std::min(pair_lanes, p.m - line))) {
            rows_of[i] = {p.a.data + item * p.a.batch_step + RowCursor(p.a.rows, line).offset(), p.a.rows.column_step,
                          steps + first};
          } else {
            rows_of[i] = {left + i * work.blocks * pair_block, pair_depth, packed_steps};
            pack_pairs<false>(*p.tiles, p.a, item, p.m, group + i, p.k, first, work.blocks,
                              left + i * work.blocks * pair_block);
          }
        }
        if (packed != nullptr) {
          work.right = packed + (items == 1 ? 0 : item) * item_size + (panel * blocks + first) * pair_block;
          work.panel_step = blocks * pair_block;
        } else {
          work.panel_step = work.blocks * pair_block;
          for (index_t i = 0; i < work.panels; ++i)
            pack_pairs<true>(*p.tiles, p.b, item, p.n, panel + i, p.k, first, work.blocks, right + i * work.panel_step);
        }
        p.tiles->run(work);
        work.begun = true;
      }
      const index_t row = group * pair_lanes, rows = std::min(work.groups * pair_lanes, p.m - row);
      RowCursor target(out.rows, row);
      for (index_t r = 0; r < rows; ++r, target.next()) {
        if (out.gated != nullptr) {
          store_gated(out, sums + r * width, pair_lanes, p.n, row + r, panel, panel + work.panels);
          continue;
        }
        const index_t offset = target.offset();
        store_tile(out, out.c + item * out.batch_c, sums + r * width, width, &offset, 1, row + r, panel * pair_lanes,
                   std::min(work.panels * pair_lanes, p.n - panel * pair_lanes));
      }
    }
  });
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
