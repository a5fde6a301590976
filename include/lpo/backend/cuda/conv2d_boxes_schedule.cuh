// SPDX-License-Identifier: MIT
// The work of conv2d_boxes.cuh's launches: boxes, tiles, phases, and which block takes which steps of which tile.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/conv2d.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// What a launch computes.
///   forward   rows = output pixels, columns = o,  summed over (tap, c)
///   data      rows = input pixels,  columns = c,  summed over (tap, o)
///   weights   rows = (tap, c),      columns = o,  summed over output pixels
enum class ConvPass { forward, data, weights };

/// What a bulk tensor copy may span along an axis, first to last element.
inline constexpr int longest_box = 256;

/// What differs between the convolutions that one launch computes on grids of one size: the data gradient of stride s
/// is s * s of them, forward and weights are one.
struct BoxPhase {
  int shift_h, shift_w;  ///< pixel (i, j) reads line i * step + shift_h + direction * tap_h, columns likewise
  int taps_h, taps_w;
  int first_tap;  ///< tap (h, w) takes weights first_tap + h * tap_step_h + w * tap_step_w
  int out_i,
      out_j;    ///< pixel (i, j) is written to line i * out_step + out_i, column j * out_step + out_j, if it exists
  int k_steps;  ///< of 64 of the summed index, in each tile
};

/// The run-time shape of a launch. Pixels are those of a grid [grid_n, grid_h, grid_w] that is cut into boxes whose
/// extents are powers of two; tiles count phase by phase.
struct BoxedConvolution {
  static constexpr int most_phases = 4;

  int grid_n, grid_h, grid_w;
  int box_n, box_h_log2, box_w_log2;
  int boxes_n, boxes_h, boxes_w;
  int step, direction;
  int tap_step_h, tap_step_w;
  int chunks;             ///< of 64 gathered channels
  int channels, columns;  ///< gathered channels; width of the result
  int out_h, out_w, out_step;
  int phase_count;
  BoxPhase phases[most_phases];

  // The launch: tiles of a phase, and how many tiles are worked on whole. The steps of the others are dealt out evenly
  // to all blocks.
  int tiles_m, tiles_n, whole_tiles;

  __host__ __device__ int phase_tiles() const { return tiles_m * tiles_n; }
  __host__ __device__ int tiles() const { return phase_count * phase_tiles(); }
  template <ConvPass pass>
  __host__ __device__ const BoxPhase& phase_of(int tile) const {
    if constexpr (pass != ConvPass::data) return phases[0];
    return phases[phase_count == 1 ? 0 : tile / phase_tiles()];
  }
  /// The line of tiles that holds a tile, counted in its phase.
  template <ConvPass pass>
  __host__ __device__ int line_of(int tile) const {
    const int line = tile / tiles_n;
    return pass == ConvPass::data ? line % tiles_m : line;
  }
  /// Steps of all tiles before this one.
  template <ConvPass pass>
  __host__ __device__ index_t steps_before(int tile) const {
    if constexpr (pass != ConvPass::data) return static_cast<index_t>(tile) * phases[0].k_steps;
    index_t steps = 0;
    for (int phase = 0; phase < phase_count && tile > 0; ++phase, tile -= phase_tiles())
      steps += static_cast<index_t>(tile < phase_tiles() ? tile : phase_tiles()) * phases[phase].k_steps;
    return steps;
  }
  template <ConvPass pass>
  __host__ __device__ index_t dealt_steps() const {
    return steps_before<pass>(tiles()) - steps_before<pass>(whole_tiles);
  }
  /// First of the dealt steps of a block; the block after the last starts at their end.
  template <ConvPass pass>
  __host__ __device__ index_t dealt_begin(index_t block, index_t blocks) const {
    return dealt_steps<pass>() * block / blocks;
  }
  /// The tile that holds a dealt step.
  template <ConvPass pass>
  __host__ __device__ int dealt_tile(index_t dealt) const {
    if constexpr (pass != ConvPass::data) return whole_tiles + static_cast<int>(dealt / phases[0].k_steps);
    dealt += steps_before<pass>(whole_tiles);
    int phase = 0;
    for (index_t in_phase; dealt >= (in_phase = static_cast<index_t>(phase_tiles()) * phases[phase].k_steps); ++phase)
      dealt -= in_phase;
    return phase * phase_tiles() + static_cast<int>(dealt / phases[phase].k_steps);
  }
};

/// Steps first .. last - 1 of the `steps` of a tile.
struct BoxWork {
  int tile, first, last, steps;

  __host__ __device__ bool is_whole() const { return last - first == steps; }
};

/// A block's work in order: every blocks-th of the whole tiles, then its share of the dealt steps.
template <ConvPass pass>
class BoxSchedule {
 public:
  __host__ __device__ __forceinline__ BoxSchedule(const BoxedConvolution& p, int block, int blocks)
      : whole_(block),
        blocks_(blocks),
        dealt_(p.dealt_begin<pass>(block, blocks)),
        dealt_end_(p.dealt_begin<pass>(block + 1, blocks)) {}

  __host__ __device__ __forceinline__ bool next(const BoxedConvolution& p, BoxWork& work) {
    if (whole_ < p.whole_tiles) {
      const int steps = p.phase_of<pass>(whole_).k_steps;
      work = {whole_, 0, steps, steps};
      whole_ += blocks_;
      return true;
    }
    if (dealt_ >= dealt_end_) return false;
    work.tile = p.dealt_tile<pass>(dealt_);
    work.steps = p.phase_of<pass>(work.tile).k_steps;
    const index_t begin = p.steps_before<pass>(work.tile) - p.steps_before<pass>(p.whole_tiles);
    work.first = static_cast<int>(dealt_ - begin);
    const index_t left = dealt_end_ - begin;
    work.last = left < work.steps ? static_cast<int>(left) : work.steps;
    dealt_ += work.last - work.first;
    return true;
  }

 private:
  int whole_, blocks_;
  index_t dealt_, dealt_end_;
};

/// The parts of a dealt tile that blocks leave, in the order of its steps. A block leaves part 2 * block of a tile that
/// others began, and part 2 * block + 1 of a tile that it begins and others end.
template <ConvPass pass>
class BoxParts {
 public:
  __host__ __device__ __forceinline__ BoxParts(const BoxedConvolution& p, int tile, int blocks)
      : begin_(p.steps_before<pass>(tile) - p.steps_before<pass>(p.whole_tiles)),
        end_(begin_ + p.phase_of<pass>(tile).k_steps),
        blocks_(blocks),
        block_(begin_ * blocks / p.dealt_steps<pass>()) {
    while (block_ > 0 && p.dealt_begin<pass>(block_, blocks) > begin_) --block_;
    while (p.dealt_begin<pass>(block_ + 1, blocks) <= begin_) ++block_;
    first_ = p.dealt_begin<pass>(block_, blocks);
    is_one_blocks_ = p.dealt_begin<pass>(block_ + 1, blocks) >= end_;
  }

  /// One block has the whole tile, and writes it itself.
  __host__ __device__ bool is_one_blocks() const { return is_one_blocks_; }
  __host__ __device__ __forceinline__ bool next(const BoxedConvolution& p, index_t& part) {
    while (block_ < blocks_ && first_ < end_) {
      const index_t next = p.dealt_begin<pass>(block_ + 1, blocks_);
      const bool has_steps = first_ < next;  // not so where there are more blocks than steps
      part = 2 * block_ + (first_ <= begin_ ? 1 : 0);
      first_ = next;
      ++block_;
      if (has_steps) return true;
    }
    return false;
  }

 private:
  index_t begin_, end_;  // the tile's steps among the dealt ones
  index_t blocks_, block_, first_ = 0;
  bool is_one_blocks_ = false;
};

/// First pixel of a box.
struct BoxOrigin {
  int n, i, j;

  __host__ __device__ __forceinline__ BoxOrigin(const BoxedConvolution& p, int box) {
    j = box % p.boxes_w << p.box_w_log2;
    box /= p.boxes_w;
    i = box % p.boxes_h << p.box_h_log2;
    n = box / p.boxes_h * p.box_n;
  }
};

/// Cuts the grid into boxes of `pixels` (a power of two) with the least left over, wide boxes first.
inline void cut_boxes(BoxedConvolution& p, int pixels) {
  index_t least = std::numeric_limits<index_t>::max();
  for (int w = pixels; w >= 1; w /= 2)
    for (int h = pixels / w; h >= 1; h /= 2) {
      const int n = pixels / w / h;
      if ((std::max(w, h) - 1) * p.step >= longest_box) continue;
      const auto cut = [](int extent, int box) { return static_cast<index_t>((extent + box - 1) / box); };
      const index_t boxes = cut(p.grid_w, w) * cut(p.grid_h, h) * cut(p.grid_n, n);
      if (boxes >= least) continue;
      least = boxes;
      p.box_w_log2 = std::countr_zero(static_cast<unsigned>(w));
      p.box_h_log2 = std::countr_zero(static_cast<unsigned>(h));
      p.box_n = n;
      p.boxes_w = static_cast<int>(cut(p.grid_w, w));
      p.boxes_h = static_cast<int>(cut(p.grid_h, h));
      p.boxes_n = static_cast<int>(cut(p.grid_n, n));
    }
}

/// The tile (128 * blocks rows), and how many blocks share the tiles that do not fill the device; 0: none are shared.
struct BoxPlan {
  int blocks = 1, columns = 128, sharing = 0;
};

/// Fills in the launch of `p` on `processors` multiprocessors and returns its number of blocks.
template <ConvPass pass>
int apply_plan(BoxedConvolution& p, const BoxPlan& plan, int processors) {
  p.tiles_n = (p.columns + plan.columns - 1) / plan.columns;
  if constexpr (pass == ConvPass::weights) {
    cut_boxes(p, 64);
    p.phases[0].k_steps = p.boxes_n * p.boxes_h * p.boxes_w;
    p.tiles_m = (p.phases[0].taps_h * p.phases[0].taps_w * p.chunks + 2 * plan.blocks - 1) / (2 * plan.blocks);
  } else {
    cut_boxes(p, 128 * plan.blocks);
    p.tiles_m = p.boxes_n * p.boxes_h * p.boxes_w;
    for (int phase = 0; phase < p.phase_count; ++phase)
      p.phases[phase].k_steps = p.phases[phase].taps_h * p.phases[phase].taps_w * p.chunks;
  }
  // Phases without taps come first: nobody is dealt steps of theirs.
  int without_steps = 0;
  while (without_steps < p.tiles() && p.phase_of<pass>(without_steps).k_steps == 0) without_steps += p.phase_tiles();
  p.whole_tiles = plan.sharing > 0 ? std::max(p.tiles() - p.tiles() % processors, without_steps) : p.tiles();
  return p.whole_tiles < p.tiles() ? plan.sharing : std::min(p.tiles(), processors);
}

/// The plan of least estimated time. The constants are nanoseconds, or bytes and operations a nanosecond, fitted to
/// 1100 launches of one phase on an H100: within 5 % of the best plan as a rule, 25 % at worst.
template <ConvPass pass>
BoxPlan choose_plan(const BoxedConvolution& shape, int processors) {
  BoxPlan best;
  double least = std::numeric_limits<double>::max();
  for (const int blocks : {2, 1})
    for (const int columns : {160, 128}) {
      BoxedConvolution p = shape;
      apply_plan<pass>(p, {blocks, columns, 1}, processors);
      const int tiles = p.tiles(), rest = tiles % processors, rounds = tiles / processors;
      const double tile = 128.0 * blocks * columns, step = tile * 64 * 2 / 6300.0 * (blocks == 2 ? 1.0 : 1.21);
      const double start = 1600.0 + 550.0 * blocks, part = tile * 2 * sizeof(float) / 3300.0;
      const auto consider = [&](int sharing, double time) {
        if (time >= least) return;
        least = time;
        best = {blocks, columns, sharing};
      };
      index_t steps = 0;  // of the first block, whose tiles are never shorter than another's, in all full rounds
      for (int round = 0; round < rounds; ++round) steps += p.phase_of<pass>(round * processors).k_steps;
      if (rest == 0) {
        consider(0, static_cast<double>(steps) * step + rounds * start);
        continue;
      }
      const int longest = p.phase_of<pass>(rounds * processors).k_steps;
      consider(0, static_cast<double>(steps + longest) * step + (rounds + 1) * start);
      // Shares that end with their tile: the blocks read the same images at the same time.
      for (int shares = 2; p.phase_count == 1 && shares * tiles <= processors && longest >= 4 * shares; ++shares)
        consider(shares * tiles,
                 step * ((longest + shares - 1) / shares) + start + 700.0 * shares + part * shares * tiles);
      // Equal shares for all: every block is busy to the end, and each reads something else.
      const double dealt = static_cast<double>(p.steps_before<pass>(tiles) - p.steps_before<pass>(rounds * processors));
      const bool apart = pass == ConvPass::weights || rounds == 0;
      if (dealt >= 4.0 * processors)
        consider(processors, (static_cast<double>(steps) + dealt / processors * (apart ? 1.4 : 1.0)) * step +
                                 (rounds + 1) * start + part * 2 * processors);
    }
  return best;
}

/// The forward pass and that of the weights, before their plan.
inline BoxedConvolution boxed(const kernel::Conv2dShape& s) {
  BoxedConvolution p{};
  p.grid_n = static_cast<int>(s.n), p.grid_h = static_cast<int>(s.out_h()), p.grid_w = static_cast<int>(s.out_w());
  p.step = static_cast<int>(s.stride), p.direction = 1;
  p.phase_count = 1;
  p.phases[0].shift_h = static_cast<int>(-s.pad_top), p.phases[0].shift_w = static_cast<int>(-s.pad_left);
  p.phases[0].taps_h = static_cast<int>(s.kernel_h), p.phases[0].taps_w = static_cast<int>(s.kernel_w);
  p.tap_step_h = static_cast<int>(s.kernel_w), p.tap_step_w = 1;
  p.chunks = static_cast<int>((s.c + 63) / 64);
  p.channels = static_cast<int>(s.c), p.columns = static_cast<int>(s.o);
  p.out_h = p.grid_h, p.out_w = p.grid_w, p.out_step = 1;
  return p;
}

/// The data gradient, before its plan: phases `first` .. `first + most_phases - 1` of its stride * stride, or fewer.
inline BoxedConvolution boxed_data_gradient(const kernel::Conv2dShape& s, int first) {
  const int stride = static_cast<int>(s.stride), h = static_cast<int>(s.h), w = static_cast<int>(s.w);
  const int kernel_h = static_cast<int>(s.kernel_h), kernel_w = static_cast<int>(s.kernel_w);
  BoxedConvolution p{};
  p.grid_n = static_cast<int>(s.n), p.grid_h = (h + stride - 1) / stride, p.grid_w = (w + stride - 1) / stride;
  p.step = 1, p.direction = -1;
  p.tap_step_h = stride * kernel_w, p.tap_step_w = stride;
  p.chunks = static_cast<int>((s.o + 63) / 64);
  p.channels = static_cast<int>(s.o), p.columns = static_cast<int>(s.c);
  p.out_h = h, p.out_w = w, p.out_step = stride;
  for (int phase = first; phase < std::min(first + BoxedConvolution::most_phases, stride * stride); ++phase) {
    const int phase_h = phase / stride, phase_w = phase % stride;
    if (phase_h >= h || phase_w >= w) continue;  // no such pixels
    const int down = phase_h + static_cast<int>(s.pad_top), right = phase_w + static_cast<int>(s.pad_left);
    const int first_u = down % stride, first_v = right % stride;
    const int taps_h = first_u < kernel_h ? (kernel_h - first_u + stride - 1) / stride : 0;
    const int taps_w = first_v < kernel_w ? (kernel_w - first_v + stride - 1) / stride : 0;
    p.phases[p.phase_count++] = {down / stride, right / stride, taps_h, taps_w, first_u * kernel_w + first_v,
                                 phase_h,       phase_w,        0};
  }
  // Those without taps, which only write zeros; then the longest first, so that blocks end together.
  std::stable_sort(p.phases, p.phases + p.phase_count, [](const BoxPhase& a, const BoxPhase& b) {
    const int taps_a = a.taps_h * a.taps_w, taps_b = b.taps_h * b.taps_w;
    return (taps_a == 0) != (taps_b == 0) ? taps_a == 0 : taps_a > taps_b;
  });
  return p;
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
