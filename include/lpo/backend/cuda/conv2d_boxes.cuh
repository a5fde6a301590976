// SPDX-License-Identifier: MIT
// The convolution of bfloat16 and half on Hopper GPUs without columns in memory: implicit products on boxes of pixels.
//
// A tile's pixels form a box of the image, so what tap (u, v) reads of them is the same box shifted: one bulk tensor
// copy of 64 channels, which fills in zeros outside the image and steps over pixels for strides. The gradients gather
// in the same way, the data gradient as one convolution of dy for each phase of the stride s:
//   data     dx[s q + phase] = sum_t dy[q + base - t] w[first + s t]
//   weights  dw[o, (u, v), c] = sum_q dy[q, o] x[s q + (u, v) - pad, c], the box being the summed index
// Tiles that do not fill the device evenly are cut along the summed index, and the parts added in order. Only code that
// was compiled for sm_90a (-gencode arch=compute_90a,code=sm_90a) holds the kernels; without it columns do the work.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include <lpo/backend/cuda/conv2d_boxes_kernel.cuh>
#include <lpo/backend/cuda/gemm.cuh>
#include <lpo/kernel/conv2d.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Whether conv2d_boxes_* can run: tensor maps count in 16 bytes and step over at most 8 pixels, coordinates are ints.
template <class T, class... Pointers>
bool can_use_boxes(const kernel::Conv2dShape& s, Pointers... addresses) {
  constexpr index_t largest = std::numeric_limits<int>::max() / 4;
  const bool small =
      std::max({s.n * s.h * s.w, s.n * s.out_h() * s.out_w(), s.o * s.kernel_h * s.kernel_w * s.c}) < largest;
  return s.n > 0 && s.h > 0 && s.w > 0 && s.out_h() > 0 && s.out_w() > 0 && s.c > 0 && s.o > 0 && s.c % 8 == 0 &&
         s.o % 8 == 0 && s.stride <= 8 && small && common_alignment(addresses...) == 16 &&
         has_hopper_body(conv2d_boxes_kernel<T, ConvPass::forward, 1, 128>);
}

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

/// Images [n, h, w, c] in boxes of 64 channels and the pixels of `p`.
template <class T>
CUtensorMap image_map(const T* images, index_t n, index_t h, index_t w, index_t c, const BoxedConvolution& p,
                      int step) {
  return tensor_map(images, {4, {c, w, h, n}, {64, 1 << p.box_w_log2, 1 << p.box_h_log2, p.box_n}, {1, step, step, 1}});
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
    p.k_steps = p.boxes_n * p.boxes_h * p.boxes_w;
    p.tiles_m = (p.taps_h * p.taps_w * p.chunks + 2 * plan.blocks - 1) / (2 * plan.blocks);
  } else {
    cut_boxes(p, 128 * plan.blocks);
    p.k_steps = p.taps_h * p.taps_w * p.chunks;
    p.tiles_m = p.boxes_n * p.boxes_h * p.boxes_w;
  }
  p.whole_tiles = plan.sharing > 0 && p.k_steps > 0 ? p.tiles() - p.tiles() % processors : p.tiles();
  return p.whole_tiles > 0 ? std::min(p.tiles(), processors) : plan.sharing;
}

/// The plan of least estimated time. The constants are nanoseconds, or bytes and operations a nanosecond, fitted to
/// 1100 launches on an H100: within 5 % of the best plan as a rule, 25 % at worst.
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
      consider(0, (rounds + (rest > 0)) * (step * p.k_steps + start));
      if (rest == 0) continue;
      // Shares that end with their tile: the blocks read the same images at the same time.
      for (int shares = 2; shares * tiles <= processors && p.k_steps >= 4 * shares; ++shares)
        consider(shares * tiles,
                 step * ((p.k_steps + shares - 1) / shares) + start + 700.0 * shares + part * shares * tiles);
      // Equal shares for all: every block is busy to the end, and each reads something else.
      const double shared = step * p.k_steps * rest / processors;
      const bool apart = pass == ConvPass::weights || rounds == 0;
      if (static_cast<index_t>(rest) * p.k_steps >= 4 * processors)
        consider(processors, rounds * step * p.k_steps + shared * (apart ? 1.4 : 1.0) + (rounds + 1) * start +
                                 part * 2 * processors);
    }
  return best;
}

template <class T, ConvPass pass, int Blocks, int Columns>
void launch_boxes_tile(Context<Cuda>& context, int blocks, const BoxedConvolution& p, const CUtensorMap& a,
                       const CUtensorMap& b, const T* bias, T* out, bool accumulate) {
  constexpr int bytes = BoxTile<pass, Blocks, Columns>::shared_bytes;
  const int dealt_tiles = p.tiles() - p.whole_tiles;
  Scratch<Cuda> scratch(context);
  float* parts = nullptr;
  if (dealt_tiles > 0) parts = scratch.template allocate<float>(2 * blocks * part_elements<Blocks, Columns / 2>);
  context.launch("conv2d_boxes_kernel", {static_cast<unsigned>(blocks), 384, bytes}, conv2d_boxes_kernel<T, pass, Blocks, Columns>, a,
                 b, p, bias, out, accumulate, parts);
  if (dealt_tiles == 0) return;
  const dim3 grid(2 * Blocks, static_cast<unsigned>(dealt_tiles), Columns / 32);
  context.launch("join_parts_kernel", {grid, 128}, join_parts_kernel<T, pass, Blocks, Columns>, p, blocks, parts, bias, out, accumulate);
}

template <class T, ConvPass pass>
void launch_boxes(Context<Cuda>& context, const BoxPlan& plan, int launch_blocks, const BoxedConvolution& p,
                  const CUtensorMap& a, const CUtensorMap& b, const T* bias, T* out, bool accumulate) {
  const auto launch =
      plan.blocks == 2
          ? (plan.columns == 160 ? launch_boxes_tile<T, pass, 2, 160> : launch_boxes_tile<T, pass, 2, 128>)
          : (plan.columns == 160 ? launch_boxes_tile<T, pass, 1, 160> : launch_boxes_tile<T, pass, 1, 128>);
  launch(context, launch_blocks, p, a, b, bias, out, accumulate);
}

/// The fields that all passes of a convolution share.
inline BoxedConvolution boxed(const kernel::Conv2dShape& s) {
  BoxedConvolution p{};
  p.grid_n = static_cast<int>(s.n), p.grid_h = static_cast<int>(s.out_h()), p.grid_w = static_cast<int>(s.out_w());
  p.step = static_cast<int>(s.stride);
  p.shift_h = static_cast<int>(-s.pad_top), p.shift_w = static_cast<int>(-s.pad_left);
  p.direction = 1;
  p.taps_h = static_cast<int>(s.kernel_h), p.taps_w = static_cast<int>(s.kernel_w);
  p.tap_step_h = p.taps_w, p.tap_step_w = 1;
  p.chunks = static_cast<int>((s.c + 63) / 64);
  p.channels = static_cast<int>(s.c), p.columns = static_cast<int>(s.o);
  p.out_h = p.grid_h, p.out_w = p.grid_w, p.out_step = 1;
  return p;
}

template <class T>
void conv2d_boxes_forward(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* x, const T* weight,
                          const T* bias, T* y) {
  BoxedConvolution p = boxed(s);
  const BoxPlan plan = choose_plan<ConvPass::forward>(p, context.multiprocessors());
  const int launch_blocks = apply_plan<ConvPass::forward>(p, plan, context.multiprocessors());
  const CUtensorMap a = image_map(x, s.n, s.h, s.w, s.c, p, p.step);
  const CUtensorMap b = tensor_map(weight, {3, {s.c, s.kernel_h * s.kernel_w, s.o}, {64, 1, plan.columns}, {1, 1, 1}});
  launch_boxes<T, ConvPass::forward>(context, plan, launch_blocks, p, a, b, bias, y, false);
}

template <class T>
void conv2d_boxes_backward_data(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* dy, const T* weight,
                                T* dx, bool accumulate) {
  const int stride = static_cast<int>(s.stride);
  const int kernel_h = static_cast<int>(s.kernel_h), kernel_w = static_cast<int>(s.kernel_w);
  const CUtensorMap b = tensor_map(weight, {3, {s.c, s.kernel_h * s.kernel_w, s.o}, {64, 1, 64}, {1, 1, 1}});
  for (int phase = 0; phase < stride * stride; ++phase) {
    const int phase_h = phase / stride, phase_w = phase % stride;
    const int down = phase_h + static_cast<int>(s.pad_top), right = phase_w + static_cast<int>(s.pad_left);
    const int first_u = down % stride, first_v = right % stride;
    BoxedConvolution p = boxed(s);
    p.grid_h = (static_cast<int>(s.h) - phase_h + stride - 1) / stride;
    p.grid_w = (static_cast<int>(s.w) - phase_w + stride - 1) / stride;
    if (p.grid_h <= 0 || p.grid_w <= 0) continue;
    p.step = 1;
    p.shift_h = down / stride, p.shift_w = right / stride;
    p.direction = -1;
    p.taps_h = first_u < kernel_h ? (kernel_h - first_u + stride - 1) / stride : 0;
    p.taps_w = first_v < kernel_w ? (kernel_w - first_v + stride - 1) / stride : 0;
    p.first_tap = first_u * kernel_w + first_v, p.tap_step_h = stride * kernel_w, p.tap_step_w = stride;
    p.chunks = static_cast<int>((s.o + 63) / 64);
    p.channels = static_cast<int>(s.o), p.columns = static_cast<int>(s.c);
    p.out_h = static_cast<int>(s.h), p.out_w = static_cast<int>(s.w);
    p.out_step = stride, p.out_i = phase_h, p.out_j = phase_w;
    const BoxPlan plan = choose_plan<ConvPass::data>(p, context.multiprocessors());
    const int launch_blocks = apply_plan<ConvPass::data>(p, plan, context.multiprocessors());
    const CUtensorMap a = image_map(dy, s.n, s.out_h(), s.out_w(), s.o, p, 1);
    launch_boxes<T, ConvPass::data>(context, plan, launch_blocks, p, a, b, static_cast<const T*>(nullptr), dx,
                                    accumulate);
  }
}

template <class T>
void conv2d_boxes_backward_weights(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* x, const T* dy,
                                   T* dweight, bool accumulate) {
  BoxedConvolution p = boxed(s);
  const BoxPlan plan = choose_plan<ConvPass::weights>(p, context.multiprocessors());
  const int launch_blocks = apply_plan<ConvPass::weights>(p, plan, context.multiprocessors());
  const CUtensorMap a = image_map(x, s.n, s.h, s.w, s.c, p, p.step);
  const CUtensorMap b = image_map(dy, s.n, s.out_h(), s.out_w(), s.o, p, 1);
  launch_boxes<T, ConvPass::weights>(context, plan, launch_blocks, p, a, b, static_cast<const T*>(nullptr), dweight,
                                     accumulate);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
