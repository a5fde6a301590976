// SPDX-License-Identifier: MIT
// The convolution of bfloat16 and half on Hopper GPUs without columns in memory: implicit products over boxes of pixels.
//
// A tile's pixels form a box of the image, so what tap (u, v) reads of them is the same box shifted: one bulk tensor copy
// [box pixels, 64 channels], which fills in zeros outside the image and steps over pixels for strides. The gradients gather in
// the same way:
//   data     dx[s q + phase] = sum_t dy[q + base - t] w[first + s t], a convolution of dy for each phase of the stride s
//   weights  dw[o, (u, v), c] = sum_q dy[q, o] x[s q + (u, v) - pad, c], the box being the summed index
// Small results are split over the summed index to fill the device, and the splits added in order.
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

/// Whether this program's code for the device has the kernels: only sm_90a code does. Their barriers are the sign.
template <class T>
bool has_boxes_kernel() {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, conv2d_boxes_kernel<T, ConvPass::forward, 1, 128>) != cudaSuccess) {
    cudaGetLastError();  // no code at all for this device: the launch that follows reports it
    return false;
  }
  return attributes.sharedSizeBytes > 0;
}

/// Whether conv2d_boxes_* can run: tensor maps count in 16 bytes, boxes step over at most 8 pixels, coordinates are ints.
template <class T, class... Pointers>
bool can_use_boxes(const kernel::Conv2dShape& s, Pointers... addresses) {
  constexpr index_t largest = std::numeric_limits<int>::max() / 4;
  const bool small = std::max({s.n * s.h * s.w, s.n * s.out_h() * s.out_w(), s.o * s.kernel_h * s.kernel_w * s.c}) < largest;
  return s.n > 0 && s.h > 0 && s.w > 0 && s.out_h() > 0 && s.out_w() > 0 && s.c > 0 && s.o > 0 && s.c % 8 == 0 &&
         s.o % 8 == 0 && s.stride <= 8 && small && common_alignment(addresses...) == 16 && has_boxes_kernel<T>();
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
CUtensorMap image_map(const T* images, index_t n, index_t h, index_t w, index_t c, const BoxedConvolution& p, int step) {
  return tensor_map(images, {4, {c, w, h, n}, {64, 1 << p.box_w_log2, 1 << p.box_h_log2, p.box_n}, {1, step, step, 1}});
}

/// The tile (64 * 2 * blocks rows) and the number of splits of a launch.
struct BoxPlan {
  int blocks = 1, columns = 128, splits = 1;
};

/// Fills the tile counts of `p` for a plan; `row_blocks` is the number of 64-row blocks of the weights' pass.
template <ConvPass pass>
void apply_plan(BoxedConvolution& p, const BoxPlan& plan, int row_blocks) {
  p.splits = plan.splits;
  p.tiles_n = (p.columns + plan.columns - 1) / plan.columns;
  if constexpr (pass == ConvPass::weights) {
    cut_boxes(p, 64);
    p.k_steps = p.boxes_n * p.boxes_h * p.boxes_w;
    p.tiles_m = (row_blocks + 2 * plan.blocks - 1) / (2 * plan.blocks);
  } else {
    cut_boxes(p, 128 * plan.blocks);
    p.k_steps = p.taps_h * p.taps_w * p.chunks;
    p.tiles_m = p.boxes_n * p.boxes_h * p.boxes_w;
  }
}

/// The plan of least estimated time. Constants were measured on an H100 (bench/NOTES.md): nanoseconds a step of a tile, a
/// tile's start and end, a launch, and bytes a nanosecond of the splits' sums.
template <ConvPass pass>
BoxPlan choose_plan(const BoxedConvolution& shape, int row_blocks, int multiprocessors) {
  constexpr double tile_start = 2000.0, sum_start = 3000.0, sum_rate = 2000.0, largest_partial = 256.0 * (1 << 20);
  BoxPlan best;
  double least = std::numeric_limits<double>::max();
  for (const int blocks : {2, 1})
    for (const int columns : {160, 128}) {
      const double step_time = 128.0 * blocks * columns * 64 * 2 / 5000.0 * (blocks == 2 ? 1.0 : 1.15);
      for (int splits = 1; splits <= 32; ++splits) {
        BoxedConvolution p = shape;
        apply_plan<pass>(p, {blocks, columns, splits}, row_blocks);
        if (splits > 1 && p.k_steps < 4 * splits) break;
        const double partial = 4.0 * splits * static_cast<double>(p.elements);
        if (splits > 1 && partial > largest_partial) break;
        const double rounds = std::ceil(static_cast<double>(p.tiles_m) * p.tiles_n * splits / multiprocessors);
        double time = rounds * (tile_start * blocks + step_time * std::ceil(static_cast<double>(p.k_steps) / splits));
        if (splits > 1 || pass == ConvPass::weights) time += sum_start + 2.0 * partial / sum_rate;
        if (time >= least) continue;
        least = time;
        best = {blocks, columns, splits};
      }
    }
  return best;
}

template <class T, ConvPass pass, int Blocks, int Columns>
void launch_boxes_tile(Context<Cuda>& context, const BoxedConvolution& p, const CUtensorMap& a, const CUtensorMap& b,
                       const T* bias, T* out, bool accumulate, float* partial) {
  constexpr int bytes = BoxTile<pass, Blocks, Columns>::shared_bytes;
  const auto kernel = conv2d_boxes_kernel<T, pass, Blocks, Columns>;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "conv2d_boxes_kernel");
  const int blocks = std::min(p.tiles_m * p.tiles_n * p.splits, context.multiprocessors());
  kernel<<<static_cast<unsigned>(blocks), 384, bytes, context.stream()>>>(a, b, p, bias, out, accumulate, partial);
  context.check_launch("conv2d_boxes_kernel");
}

template <class T, ConvPass pass>
void launch_boxes(Context<Cuda>& context, const BoxPlan& plan, const BoxedConvolution& p, const CUtensorMap& a,
                  const CUtensorMap& b, const T* bias, T* out, bool accumulate, float* partial) {
  const auto launch = plan.blocks == 2
                          ? (plan.columns == 160 ? launch_boxes_tile<T, pass, 2, 160> : launch_boxes_tile<T, pass, 2, 128>)
                          : (plan.columns == 160 ? launch_boxes_tile<T, pass, 1, 160> : launch_boxes_tile<T, pass, 1, 128>);
  launch(context, p, a, b, bias, out, accumulate, partial);
}

template <class T>
void sum_splits(Context<Cuda>& context, const float* partial, int splits, index_t elements, int columns, const T* bias, T* out,
                bool accumulate) {
  sum_splits_kernel<<<blocks_for(elements, 8 * 256), 256, 0, context.stream()>>>(partial, splits, elements, columns, bias, out,
                                                                                 accumulate);
  context.check_launch("sum_splits_kernel");
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
  p.rows = static_cast<int>(s.c), p.columns = static_cast<int>(s.o);
  p.out_h = p.grid_h, p.out_w = p.grid_w, p.out_step = 1;
  p.elements = s.n * s.out_h() * s.out_w() * s.o;
  return p;
}

template <class T>
void conv2d_boxes_forward(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* x, const T* weight, const T* bias,
                          T* y) {
  BoxedConvolution p = boxed(s);
  const BoxPlan plan = choose_plan<ConvPass::forward>(p, 0, context.multiprocessors());
  apply_plan<ConvPass::forward>(p, plan, 0);
  const CUtensorMap a = image_map(x, s.n, s.h, s.w, s.c, p, p.step);
  const CUtensorMap b = tensor_map(weight, {3, {s.c, s.kernel_h * s.kernel_w, s.o}, {64, 1, plan.columns}, {1, 1, 1}});
  Scratch<Cuda> scratch(context);
  float* partial = plan.splits == 1 ? nullptr : scratch.template allocate<float>(plan.splits * p.elements);
  launch_boxes<T, ConvPass::forward>(context, plan, p, a, b, bias, y, false, partial);
  if (partial != nullptr) sum_splits(context, partial, plan.splits, p.elements, p.columns, bias, y, false);
}

template <class T>
void conv2d_boxes_backward_data(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* dy, const T* weight, T* dx,
                                bool accumulate) {
  const int stride = static_cast<int>(s.stride), kernel_h = static_cast<int>(s.kernel_h), kernel_w = static_cast<int>(s.kernel_w);
  const int pad_h = static_cast<int>(s.pad_top), pad_w = static_cast<int>(s.pad_left);
  const auto phase_shape = [&](int phase_h, int phase_w) {
    BoxedConvolution p = boxed(s);
    const int first_u = (phase_h + pad_h) % stride, first_v = (phase_w + pad_w) % stride;
    p.grid_h = (static_cast<int>(s.h) - phase_h + stride - 1) / stride;
    p.grid_w = (static_cast<int>(s.w) - phase_w + stride - 1) / stride;
    p.step = 1;
    p.shift_h = (phase_h + pad_h) / stride, p.shift_w = (phase_w + pad_w) / stride;
    p.direction = -1;
    p.taps_h = first_u < kernel_h ? (kernel_h - first_u + stride - 1) / stride : 0;
    p.taps_w = first_v < kernel_w ? (kernel_w - first_v + stride - 1) / stride : 0;
    p.first_tap = first_u * kernel_w + first_v, p.tap_step_h = stride * kernel_w, p.tap_step_w = stride;
    p.chunks = static_cast<int>((s.o + 63) / 64);
    p.columns = static_cast<int>(s.c);
    p.out_h = static_cast<int>(s.h), p.out_w = static_cast<int>(s.w);
    p.out_step = stride, p.out_i = phase_h, p.out_j = phase_w;
    p.elements = s.n * s.h * s.w * s.c;
    return p;
  };
  // One plan for all phases, from the phase with most taps: their splits are added together.
  BoxedConvolution largest = phase_shape(0, 0);
  for (int phase = 1; phase < stride * stride; ++phase) {
    const BoxedConvolution p = phase_shape(phase / stride, phase % stride);
    if (p.taps_h * p.taps_w > largest.taps_h * largest.taps_w && p.grid_h > 0 && p.grid_w > 0) largest = p;
  }
  const BoxPlan plan = choose_plan<ConvPass::data>(largest, 0, context.multiprocessors());
  const CUtensorMap b = tensor_map(weight, {3, {s.c, s.kernel_h * s.kernel_w, s.o}, {64, 1, 64}, {1, 1, 1}});
  Scratch<Cuda> scratch(context);
  float* partial = plan.splits == 1 ? nullptr : scratch.template allocate<float>(plan.splits * largest.elements);
  const T* no_bias = nullptr;
  for (int phase = 0; phase < stride * stride; ++phase) {
    BoxedConvolution p = phase_shape(phase / stride, phase % stride);
    if (p.grid_h <= 0 || p.grid_w <= 0) continue;
    apply_plan<ConvPass::data>(p, plan, 0);
    const CUtensorMap a = image_map(dy, s.n, s.out_h(), s.out_w(), s.o, p, 1);
    launch_boxes<T, ConvPass::data>(context, plan, p, a, b, no_bias, dx, accumulate, partial);
  }
  if (partial != nullptr)
    sum_splits(context, partial, plan.splits, largest.elements, largest.columns, no_bias, dx, accumulate);
}

template <class T>
void conv2d_boxes_backward_weights(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* x, const T* dy, T* dweight,
                                   bool accumulate) {
  BoxedConvolution p = boxed(s);
  p.elements = s.o * s.kernel_h * s.kernel_w * s.c;
  const int row_blocks = p.taps_h * p.taps_w * p.chunks;
  const BoxPlan plan = choose_plan<ConvPass::weights>(p, row_blocks, context.multiprocessors());
  apply_plan<ConvPass::weights>(p, plan, row_blocks);
  const CUtensorMap a = image_map(x, s.n, s.h, s.w, s.c, p, p.step);
  const CUtensorMap b = image_map(dy, s.n, s.out_h(), s.out_w(), s.o, p, 1);
  Scratch<Cuda> scratch(context);
  float* partial = scratch.template allocate<float>(plan.splits * p.elements);
  const T* no_bias = nullptr;
  launch_boxes<T, ConvPass::weights>(context, plan, p, a, b, no_bias, dweight, accumulate, partial);
  sum_splits(context, partial, plan.splits, p.elements, p.columns, no_bias, dweight, accumulate);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
