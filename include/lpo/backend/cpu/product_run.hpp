// SPDX-License-Identifier: MIT
// Products on the register tile: what a job does, and running all of them.
//
//   out[r, j] = sum_l a(r, l) b(l, j),   r < m, j < n, l < k
//
// A job makes a block of rows x panels, part of k by part of k. Its rows of A are packed into blocks of a tile's height
// that stay in the second-level cache while all panels of the job use them, and a part of a panel of B stays in the
// first while all rows do; B is packed there where no other job needs it, else before. Every operand is thus read in
// sequence, whatever its strides. How k is cut depends on the extents alone, and each element adds up its parts in order:
// any number of threads gives the same bits.
#pragma once

#include <lpo/backend/cpu/product_cut.hpp>
#include <lpo/backend/cpu/worker_scratch.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Cache lines of a few rows of memory that will be needed soon, fetched a few at a time beside the multiply-adds: what
/// packing would wait for.
class Ahead {
 public:
  Ahead() = default;
  /// `rows` rows of `bytes`, to be fetched in `turns` turns.
  Ahead(index_t rows, index_t bytes, index_t turns)
      : rows_(rows), lines_((bytes + 63) / 64), each_((rows * lines_ + turns - 1) / turns) {}

  /// One turn; row i begins at row(i).
  template <class Row>
  void fetch(Row&& row) {
    for (index_t i = 0; i < each_ && row_ < rows_; ++i) {
      if (line_ == 0) from_ = static_cast<const char*>(row(row_));
      __builtin_prefetch(from_ + line_ * 64, 0, 2);
      if (++line_ == lines_) line_ = 0, ++row_;
    }
  }

 private:
  index_t rows_ = 0, lines_ = 1, each_ = 0, row_ = 0, line_ = 0;
  const char* from_ = nullptr;
};

/// What all jobs of a product share.
template <class S, class T>
struct ProductJobs {
  const TileProduct<S>& p;
  const TileOutput<T>& out;
  ProductCut cut;
  const S* left;      ///< [batch, blocks, k, tile_rows] of A if it was packed before
  const S* right;     ///< [items, panels, k, columns] of B if it was packed before
  const S* bias;      ///< [panels * columns] in the arithmetic type, or null
  bool straight;      ///< whether sums are what is stored

  index_t columns() const { return p.kernel->columns(); }
  /// Panels of B that a job fetches at a time.
  index_t side_by_side() const { return right == nullptr && p.b.offset != nullptr ? (cut.blocks > 22 ? 4 : 8) : 1; }
  index_t left_size() const { return cut.left_in_place || left != nullptr ? 0 : cut.blocks * cut.depth * tile_rows; }
  index_t right_size() const { return right != nullptr ? 0 : cut.depth * columns(); }
  index_t sums_size() const {
    return straight ? cut.panels * columns() : cut.blocks * tile_rows * tile_kept_columns;
  }
  index_t workspace() const { return left_size() + right_size() + sums_size(); }

  /// Rows of the blocks from `block` on, panels [panel, panel_end), k in [first, last); `space`: workspace() elements.
  void run(index_t item, T* c, index_t block, index_t panel, index_t panel_end, index_t first, index_t last,
           S* space) const {
    Rows job;
    S* const sums = space + left_size() + right_size();
    place_rows(item, c, block, panel, sums, job);
    const index_t together = straight ? panel_end - panel : tile_kept_columns / columns();
    for (index_t group = panel; group < panel_end; group += together) {
      const index_t group_end = std::min(panel_end, group + together);
      for (index_t l = first; l < last || l == first; l += cut.depth) {
        const index_t depth = std::min(cut.depth, last - l), next = l + depth < last ? l + depth : first;
        run_part(job, {group, group_end, straight ? panel : group, l, depth, next, std::min(depth, last - next)},
                 l > first, space);
      }
      if (!straight) store(c, sums, job.offset, job.row, job.rows, group, group_end);
    }
  }

 private:
  static constexpr index_t element_bytes = sizeof(S);

  /// The rows of a job; what is behind the last one is computed and dropped.
  struct Rows {
    index_t item, row, rows, blocks;
    const S* lines[tile_job_blocks * tile_rows];  ///< of A
    S* to[(tile_job_blocks + 1) * tile_rows];     ///< where their sums go, and those of a tile behind them
    index_t offset[tile_job_blocks * tile_rows];  ///< in C
  };

  /// Panels [panel, panel_end), whose sums begin with those of `origin`, and `depth` steps of k from l on; then
  /// `next_depth` steps from `next` on.
  struct Part {
    index_t panel, panel_end, origin, l, depth, next, next_depth;
  };

  void place_rows(index_t item, T* c, index_t block, index_t panel, S* sums, Rows& job) const {
    job.item = item, job.row = block * tile_rows;
    job.rows = std::min(cut.blocks * tile_rows, p.m - job.row);
    job.blocks = (job.rows + tile_rows - 1) / tile_rows;
    RowCursor source(p.a.rows, job.row), target(out.rows, job.row);
    for (index_t i = 0; i < job.blocks * tile_rows; ++i) {
      job.lines[i] = i < job.rows ? p.a.data + item * p.a.batch_step + source.offset() : job.lines[0];
      job.offset[i] = i < job.rows ? target.offset() : 0;
      job.to[i] = sums + (straight ? 0 : i * tile_kept_columns);
      if constexpr (std::is_same_v<S, T>) {
        if (straight && i < job.rows) job.to[i] = c + job.offset[i] + panel * columns();
      }
      if (i + 1 < job.rows) source.next(), target.next();
    }
    for (index_t i = 0; i < tile_rows; ++i) job.to[job.blocks * tile_rows + i] = job.to[i];
  }

  /// All tiles of a part; `begun`: whether sums are there to add to.
  void run_part(const Rows& job, const Part& part, bool begun, S* space) const {
    S* const right_part = space + left_size();
    if (left == nullptr && !cut.left_in_place)
      pack_blocks(p.a, job.lines, job.blocks, part.l, part.l + part.depth, space);
    TileWork<S> work;
    work.k = part.depth, work.at = part.l;
    work.add = begun || (straight && out.beta != 0.0f);
    const S* const packed =
        left == nullptr ? space : left + ((job.item * p.blocks() + job.row / tile_rows) * p.k + part.l) * tile_rows;
    const index_t packed_step = (left == nullptr ? part.depth : p.k) * tile_rows;
    const index_t next_along = p.a.along(part.next);
    Ahead left_ahead = left_behind(job, part), right_ahead;
    for (index_t at = part.panel; at < part.panel_end; ++at) {
      const index_t valid = std::min(columns(), p.n - at * columns()), beside = (at - part.panel) % side_by_side();
      // The panels and the part of k that are needed next.
      const bool wraps = at - beside + side_by_side() >= part.panel_end;
      const index_t after = wraps ? part.panel : at - beside + side_by_side(), after_l = wraps ? part.next : part.l;
      if (beside == 0) {
        const index_t turns = job.blocks * std::min(side_by_side(), part.panel_end - at);
        right_ahead = right_behind(after, part.depth, wraps ? part.next_depth : part.depth, turns, job.blocks);
      }
      work.b = right_part;
      if (right != nullptr)
        work.b = packed_panel(job.item, at, part.l);
      else
        p.b.pack(p.b, *p.kernel, job.item, at * columns(), part.l, part.l + part.depth, right_part, valid);
      work.start = !work.add && straight && bias != nullptr ? bias + at * columns() : nullptr;
      work.column = (at - part.origin) * columns();
      const auto run = (cut.left_in_place ? p.kernel->in_place
                                          : p.kernel->packed)[(valid + p.kernel->lanes - 1) / p.kernel->lanes - 1];
      for (index_t i = 0; i < job.blocks; ++i) {
        right_ahead.fetch([&](index_t r) -> const void* {
          if (right != nullptr) return packed_panel(job.item, after, after_l);
          return p.b.offset != nullptr ? p.b.element(job.item, after_l + r, after * columns())
                                       : p.b.element(job.item, after_l, after * columns() + r);
        });
        left_ahead.fetch([&](index_t r) -> const void* {
          if (left != nullptr) return packed + r * packed_step + part.depth * tile_rows;
          return p.a.offset != nullptr ? job.lines[0] + p.a.offset[part.next + r] : job.lines[r] + next_along;
        });
        work.lines = job.lines + i * tile_rows;
        work.packed = packed + i * packed_step;
        work.c = job.to + i * tile_rows;
        run(work);
      }
    }
  }

  /// What is fetched of A beside the tiles of a part: the next part.
  Ahead left_behind(const Rows& job, const Part& part) const {
    const index_t turns = job.blocks * (part.panel_end - part.panel);
    if (cut.left_in_place || part.next <= part.l) return {};
    if (left != nullptr) return Ahead(job.blocks, part.depth * tile_rows * element_bytes, turns);
    if (p.a.offset != nullptr) return Ahead(part.next_depth, job.rows * element_bytes, turns);
    return Ahead(job.rows, part.depth * element_bytes, turns);
  }

  /// Of B: panels from `after` on, `depth` steps of k.
  Ahead right_behind(index_t after, index_t now, index_t depth, index_t turns, index_t blocks) const {
    if (right != nullptr) return Ahead(1, now * columns() * element_bytes, turns);
    if (p.b.offset != nullptr) return Ahead(depth, columns() * side_by_side() * p.b.size, turns);
    return Ahead(std::min(columns(), p.n - after * columns()), now * p.b.size, blocks);
  }

  const S* packed_panel(index_t item, index_t panel, index_t l) const {
    const index_t step = p.b.pack == nullptr ? p.b.batch_step : p.b.batch_step == 0 ? 0 : p.panels() * p.k * columns();
    return right + item * step + (panel * p.k + l) * columns();
  }

  void store(T* c, const S* sums, const index_t* offset, index_t row, index_t rows, index_t panel,
             index_t panel_end) const {
    constexpr index_t kept = tile_kept_columns;
    if constexpr (std::is_same_v<S, float>) {
      if (out.gated != nullptr)
        return store_gated(out, sums, kept, static_cast<int>(rows), columns(), p.n, row, panel, panel_end);
    }
    store_tile(out, c, sums, kept, offset, static_cast<int>(rows), row, panel * columns(),
               std::min(panel_end * columns(), p.n) - panel * columns());
  }
};

/// Runs the jobs of all slices of k, whose sums go to out_of(slice).
template <class S, class T, class Out>
void run_jobs(Context<Cpu>& context, Scratch<Cpu>& scratch, const ProductJobs<S, T>& jobs, index_t slices,
              Out&& out_of) {
  const TileProduct<S>& p = jobs.p;
  const index_t panels = p.panels(), blocks = p.blocks();
  const index_t high = (blocks + jobs.cut.blocks - 1) / jobs.cut.blocks,
                wide = (panels + jobs.cut.panels - 1) / jobs.cut.panels;
  WorkerScratch<S> workspace(context, scratch, jobs.workspace());
  context.executor().parallel_for(p.batch * slices * high * wide, 1, [&](index_t begin, index_t end) {
    const typename WorkerScratch<S>::Lease lease(workspace);
    for (index_t job = begin; job < end; ++job) {
      const index_t part = job / (high * wide), item = part / slices, first = part % slices * jobs.cut.slice;
      const index_t block = job % high * jobs.cut.blocks, panel = job / high % wide * jobs.cut.panels;
      jobs.run(item, out_of(part), block, panel, std::min(panels, panel + jobs.cut.panels), first,
               std::min(p.k, first + jobs.cut.slice), lease.data());
    }
  });
}

/// All of A, packed by the threads: [batch, blocks, k, tile_rows].
template <class S>
const S* pack_left(Context<Cpu>& context, Scratch<Cpu>& scratch, const TileProduct<S>& p) {
  const index_t blocks = (p.m + tile_rows - 1) / tile_rows;
  S* const to = scratch.allocate<S>(p.batch * blocks * p.k * tile_rows);
  const index_t grain = std::max<index_t>(1, 8192 / (p.k * tile_rows + 1));
  context.executor().parallel_for(p.batch * blocks, grain, [&](index_t begin, index_t end) {
    for (index_t at = begin; at < end; ++at) {
      const S* lines[tile_rows];
      const index_t row = at % blocks * tile_rows;
      RowCursor source(p.a.rows, row);
      for (index_t i = 0; i < tile_rows; ++i, source.next())
        lines[i] = row + i < p.m ? p.a.data + at / blocks * p.a.batch_step + source.offset() : lines[0];
      pack_blocks(p.a, lines, 1, 0, p.k, to + at * p.k * tile_rows);
    }
  });
  return to;
}

/// All of B, packed by the threads at `to`: [items, panels, k, columns].
template <class S>
void pack_right(Context<Cpu>& context, const TileProduct<S>& p, S* to) {
  constexpr index_t block = 64;
  const index_t columns = p.kernel->columns(), panels = (p.n + columns - 1) / columns,
                blocks = (p.k + block - 1) / block;
  const index_t grain = std::max<index_t>(1, 8192 / (block * columns));
  context.executor().parallel_for(p.items() * panels * blocks, grain, [&](index_t begin, index_t end) {
    for (index_t at = begin; at < end; ++at) {
      // In the order in which B lies in memory.
      const index_t item = at / (panels * blocks), within = at % (panels * blocks);
      const index_t panel = p.b.offset != nullptr ? within % panels : within / blocks;
      const index_t first = (p.b.offset != nullptr ? within / panels : within % blocks) * block;
      const index_t column = panel * columns;
      p.b.pack(p.b, *p.kernel, item, column, first, std::min(p.k, first + block),
               to + ((item * panels + panel) * p.k + first) * columns, std::min(columns, p.n - column));
    }
  });
}

/// All of B, packed, where it is so already, is constant (packed_weights.hpp) or several jobs share it; else null.
template <class S>
const S* packed_right(Context<Cpu>& context, Scratch<Cpu>& scratch, const TileProduct<S>& p, bool shared) {
  if (p.b.pack == nullptr) return static_cast<const S*>(p.b.data);
  const index_t count = p.items() * p.panels() * p.k * p.kernel->columns();
  if (p.items() == 1 && p.k > 0 && context.packed_weights().promised(p.b.data)) {
    const index_t columns = p.kernel->columns();
    const auto key = packed_key(p.n, p.k, columns, columns, [&](index_t l, index_t column) { return p.b.element(0, l, column); });
    return context.packed_weights().template find_or_make<S>(key, count, [&](S* to) { pack_right(context, p, to); });
  }
  if (!shared) return nullptr;
  S* const to = scratch.allocate<S>(count);
  pack_right(context, p, to);
  return to;
}

/// Adds up `slices` partial products [batch, slices, m, n] in their order, in place, and stores them.
template <class S, class T>
void store_slices(Context<Cpu>& context, const TileProduct<S>& p, const TileOutput<T>& out, S* parts, index_t slices) {
  const index_t grain = std::max<index_t>(1, 65536 / (slices * p.n));
  context.executor().parallel_for(p.batch * p.m, grain, [&](index_t begin, index_t end) {
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

/// Runs the product (all items of the batch) on the context's threads.
template <class S, class T>
void run_product(Context<Cpu>& context, const TileProduct<S>& p, const TileOutput<T>& out) {
  if (p.m <= 0 || p.n <= 0 || p.batch <= 0) return;
  const index_t columns = p.kernel->columns(), panels = p.panels();
  const bool by_row = out.bias != nullptr && out.bias_by_row;
  const bool straight = std::is_same_v<S, T> && out.gated == nullptr && out.alpha == 1.0f && out.column_step == 1 &&
                        (out.beta == 0.0f || (out.beta == 1.0f && out.bias == nullptr)) &&
                        p.n % p.kernel->lanes == 0 && !by_row;
  Scratch<Cpu> scratch(context);
  ProductCut cut = cut_product(p, straight ? tile_job_blocks : 16, out.gated == nullptr ? 1 : 2,
                               context.executor().threads());
  if (out.gated != nullptr) cut.slice = std::max<index_t>(p.k, 1);
  const index_t slices = p.k <= cut.slice ? 1 : (p.k + cut.slice - 1) / cut.slice;
  const bool shared = (p.m > cut.blocks * tile_rows ? 2 : 1) * p.batch / p.items() > 1;
  const S* const right = packed_right(context, scratch, p, shared);
  const S* const left = cut.left_before ? pack_left(context, scratch, p) : nullptr;
  if (slices == 1) {
    S* bias = nullptr;
    if (straight && out.bias != nullptr) {
      bias = scratch.allocate<S>(panels * columns);
      for (index_t j = 0; j < panels * columns; ++j) bias[j] = j < p.n ? load_lanes<S>(out.bias + j) : S{};
    }
    const ProductJobs<S, T> jobs{p, out, cut, left, right, bias, straight};
    run_jobs(context, scratch, jobs, 1, [&](index_t item) { return out.c + item * out.batch_c; });
    return;
  }
  TileOutput<S> partial;
  partial.rows = even_rows(p.m, p.n);
  S* const parts = scratch.allocate<S>(p.batch * slices * p.m * p.n);  // [batch, slices, m, n]
  const ProductJobs<S, S> jobs{p, partial, cut, left, right, nullptr, p.n % p.kernel->lanes == 0};
  run_jobs(context, scratch, jobs, slices, [&](index_t part) { return parts + part * p.m * p.n; });
  store_slices(context, p, out, parts, slices);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
