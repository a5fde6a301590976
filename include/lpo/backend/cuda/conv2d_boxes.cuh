// SPDX-License-Identifier: MIT
// The convolution of bfloat16 and half on Hopper GPUs without columns in memory: implicit products on boxes of pixels.
//
// A tile's pixels form a box of the image, so what tap (u, v) reads of them is the same box shifted: one bulk tensor
// copy of 64 channels, which fills in zeros outside the image and steps over pixels for strides. The gradients gather
// in the same way, the data gradient as one convolution of dy for each phase of the stride s, four to a launch:
//   data     dx[s q + phase] = sum_t dy[q + base - t] w[first + s t]
//   weights  dw[o, (u, v), c] = sum_q dy[q, o] x[s q + (u, v) - pad, c], the box being the summed index
// Tiles that do not fill the device evenly are cut along the summed index, and the parts added in order. Only code that
// was compiled for sm_90a (-gencode arch=compute_90a,code=sm_90a) holds the kernels; without it columns do the work.
#pragma once

#include <algorithm>
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

/// Images [n, h, w, c] in boxes of 64 channels and the pixels of `p`.
template <class T>
CUtensorMap image_map(const T* images, index_t n, index_t h, index_t w, index_t c, const BoxedConvolution& p,
                      int step) {
  return tensor_map(images, {4, {c, w, h, n}, {64, 1 << p.box_w_log2, 1 << p.box_h_log2, p.box_n}, {1, step, step, 1}});
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
  const CUtensorMap b = tensor_map(weight, {3, {s.c, s.kernel_h * s.kernel_w, s.o}, {64, 1, 64}, {1, 1, 1}});
  const int phases = static_cast<int>(s.stride * s.stride);
  for (int phase = 0; phase < phases; phase += BoxedConvolution::most_phases) {
    BoxedConvolution p = boxed_data_gradient(s, phase);
    if (p.phase_count == 0) continue;
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
