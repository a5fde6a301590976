// SPDX-License-Identifier: MIT
// A product on the register tile, and how it is cut into jobs.
#pragma once

#include <lpo/backend/cpu/product_pack.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

inline constexpr index_t tile_job_blocks = 54;     // of tile_rows rows: with 320 steps of k, 415 KB of float
inline constexpr index_t tile_kept_columns = 256;  // of sums that do not go straight to C

template <class S>
struct TileProduct {
  const TileKernel<S>* kernel = &tile_kernel<S>();
  index_t m = 0, n = 0, k = 0, batch = 1;
  bool sliced = true;  ///< whether few rows and columns may be split over k; if not, bits depend on k alone
  LeftOperand<S> a;
  RightOperand<S> b;

  index_t blocks() const { return (m + tile_rows - 1) / tile_rows; }
  index_t panels() const { return (n + kernel->columns() - 1) / kernel->columns(); }
  index_t items() const { return b.batch_step == 0 ? 1 : batch; }  ///< of B
};

/// How a product is cut: blocks of tile_rows rows and panels of a job, and, from the extents alone, the length of a
/// slice of k, which goes to jobs of its own, and of the parts in which a job walks it.
struct ProductCut {
  index_t blocks, panels, slice, depth;
  bool left_in_place;  ///< whether A is not packed: a job uses its rows too rarely
  bool left_before;    ///< whether A is packed before the jobs: several share its rows
};

/// The cut whose jobs take the least time, that of their tiles, of packing both operands and of starting, if threads
/// take jobs as they come and a part of a job is waited for at the end. `most`: blocks of a job; `step`: what its panels
/// are a multiple of.
template <class S>
ProductCut cut_product(const TileProduct<S>& p, index_t most, index_t step, int threads) {
  const index_t blocks = p.blocks(), panels = p.panels();
  // A product with few rows and columns is split over k, for the threads' sake.
  constexpr index_t enough = 256, shortest = 512;
  const index_t units = p.batch * ((blocks + 3) / 4) * panels;
  const index_t slices = p.sliced && units < enough && p.k >= 2 * shortest
                             ? std::min((p.k + shortest - 1) / shortest, (units + enough - 1) / units)
                             : 1;
  const index_t slice = std::max<index_t>(1, (p.k + slices - 1) / slices);
  const index_t parts = (slice + p.kernel->depth() - 1) / p.kernel->depth();
  const index_t depth = ((slice + parts - 1) / parts + 3) / 4 * 4;

  // What is waited for at the end, in jobs: the more threads there are, the slower is the slowest.
  const double late = 0.5 * (1.0 - 1.0 / threads);
  // In tiles: packing a block of A, or reading a packed one again; packing a panel of B for a job; starting a job. All
  // three were estimated from profiles, not fitted.
  constexpr double pack_a = 0.3, read_a = 0.1, pack_b = 0.7;
  const double start = 300.0 / static_cast<double>(slice);
  ProductCut best{};
  double least = 0;
  const index_t fewest = (blocks + most - 1) / most;
  for (index_t high = fewest; high <= std::max(fewest, blocks / 4) && high <= 64 * fewest; high += (high + 3) / 4)
    for (index_t wide = 1; wide <= panels; wide += (wide + 3) / 4) {
      const index_t height = (blocks + high - 1) / high, width = ((panels + wide - 1) / wide + step - 1) / step * step;
      const index_t across = (panels + width - 1) / width;
      const index_t jobs = p.batch * slices * ((blocks + height - 1) / height) * across;
      const bool in_place = p.a.offset == nullptr && p.a.run >= p.k && std::min(width, panels) < 8;
      const bool before = !in_place && p.a.offset == nullptr && across >= 4;
      // Walking rows in place costs what packing them does, unless all jobs walk the same few.
      const double left = before || (in_place && height == blocks && across >= 4) ? read_a : pack_a;
      const double turns = static_cast<double>((jobs + threads - 1) / threads) + late;
      const double tall = static_cast<double>(height), broad = static_cast<double>(width);
      const double once = before ? pack_a * static_cast<double>(blocks * p.batch) / threads : 0.0;
      const double cost =
          once + turns * ((tall + pack_b * (1.0 + 2.0 / broad)) * (broad + left) + start);
      if (least == 0 || cost < least) least = cost, best = {height, width, slice, depth, in_place, before};
    }
  return best;
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
