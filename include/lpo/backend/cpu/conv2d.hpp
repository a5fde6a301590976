// SPDX-License-Identifier: MIT
// The 2-D convolution of the CPU and its gradients: register tiles that walk the zero-padded images, without im2col; 3 x 3
// with fewer multiplications where that pays (winograd.hpp).
//
// With x padded once to xp [n, lines, columns, c], an output pixel is a row whose elements lie at xp + pixel + tap, so
//   forward           y[pixel, o]  = sum_(u, v, c) xp[pixel + (u, v, c)] w[o, (u, v, c)]
//   weight gradient   dw[o, (u, v, c)] = sum_pixel dy[pixel, o] xp[pixel + (u, v, c)]
// are register-tile products whose jobs pack the part of the pixels that they need. The data gradient of stride s is
// s * s such products, one for each residue of the pixel, over the taps that reach it: no multiplication by inserted
// zeros.
#pragma once

#include <lpo/backend/cpu/bfloat16_product.hpp>
#include <lpo/backend/cpu/padded_images.hpp>
#include <lpo/backend/cpu/product_run.hpp>
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/cpu/winograd.hpp>
#include <lpo/kernel/conv2d.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

// S is what operands are multiplied as: the arithmetic type, or bfloat16 where the machine multiplies its pairs.

template <class S, class T>
void conv2d_forward(Context<Cpu>& context, const kernel::Conv2dShape& s, const T* x, const T* weight, const T* bias,
                    T* y) {
  Scratch<Cpu> scratch(context);
  const index_t out_h = s.out_h(), out_w = s.out_w(), taps = s.kernel_h * s.kernel_w * s.c;
  const index_t run = std::max<index_t>(s.kernel_w * s.c, 1);  // without channels nothing is read
  const auto images = pad_images<S>(context, scratch, x, s.n, s.h, s.w, s.c, s.pad_top, s.pad_left,
                                    s.h + s.pad_top + s.pad_bottom, s.w + s.pad_left + s.pad_right);
  const RowMap pixels = {out_w, out_h, s.stride * s.c, s.stride * images.line(), images.image()};
  TileOutput<T> out;
  out.c = y;
  out.rows = even_rows(s.n * out_h * out_w, s.o);
  out.bias = bias;
  if constexpr (std::is_same_v<S, bfloat16>) {
    PairProduct p;
    p.m = s.n * out_h * out_w, p.n = s.o, p.k = taps;
    p.a = {images.data, 0, pixels, run, images.line()};
    p.b = {weight, 0, even_rows(s.o, taps), taps};
    run_pair_product(context, p, out);
  } else {
    TileProduct<S> p;
    p.m = s.n * out_h * out_w, p.n = s.o, p.k = taps;
    p.a = {images.data, 0, pixels, run, images.line()};
    p.b = RightOperand<S>::along_k(weight, 0, even_rows(s.o, taps));
    run_product(context, p, out);
  }
}

template <class S, class T>
void conv2d_backward_data(Context<Cpu>& context, const kernel::Conv2dShape& s, const T* dy, const T* weight, T* dx,
                          bool accumulate) {
  Scratch<Cpu> scratch(context);
  const index_t stride = s.stride;
  // dx[i] = sum_u dy[(i + pad - u) / stride] w[u]. For i = phase + stride q the taps u = first + stride t contribute,
  // and dy is read at base + q - t with base = (phase + pad - first) / stride.
  const index_t pad_h = (s.kernel_h + stride - 1) / stride - 1, pad_w = (s.kernel_w + stride - 1) / stride - 1;
  const auto images = pad_images<S>(context, scratch, dy, s.n, s.out_h(), s.out_w(), s.o, pad_h, pad_w,
                                    pad_h + (stride - 1 + s.pad_top) / stride + (s.h + stride - 1) / stride,
                                    pad_w + (stride - 1 + s.pad_left) / stride + (s.w + stride - 1) / stride);
  for (index_t phase = 0; phase < stride * stride; ++phase) {
    const index_t phase_h = phase / stride, phase_w = phase % stride;
    const index_t first_u = (phase_h + s.pad_top) % stride, first_v = (phase_w + s.pad_left) % stride;
    const index_t taps_h = first_u < s.kernel_h ? (s.kernel_h - first_u + stride - 1) / stride : 0;
    const index_t taps_w = first_v < s.kernel_w ? (s.kernel_w - first_v + stride - 1) / stride : 0;
    const index_t lines = (s.h - phase_h + stride - 1) / stride, columns = (s.w - phase_w + stride - 1) / stride;
    if (lines <= 0 || columns <= 0) continue;
    Scratch<Cpu> inner(context);
    const index_t k = taps_h * taps_w * s.o;
    // The taps in the order in which dy is read: t from last to first.
    index_t* from = inner.allocate<index_t>(k);
    index_t at = 0;
    for (index_t t = taps_h - 1; t >= 0; --t)
      for (index_t r = taps_w - 1; r >= 0; --r)
        for (index_t o = 0; o < s.o; ++o)
          from[at++] = ((o * s.kernel_h + first_u + stride * t) * s.kernel_w + first_v + stride * r) * s.c;
    const index_t base_h = (phase_h + s.pad_top - first_u) / stride, base_w = (phase_w + s.pad_left - first_v) / stride;
    const S* gradients = images.data;
    if (k > 0) gradients += (pad_h + base_h - taps_h + 1) * images.line() + (pad_w + base_w - taps_w + 1) * s.o;
    const RowMap pixels = {columns, lines, s.o, images.line(), images.image()};
    TileOutput<T> out;
    out.c = dx + (phase_h * s.w + phase_w) * s.c;
    out.rows = {columns, lines, stride * s.c, stride * s.w * s.c, s.h * s.w * s.c};
    out.beta = accumulate ? 1.0f : 0.0f;
    if constexpr (std::is_same_v<S, bfloat16>) {
      PairProduct p;
      p.m = s.n * lines * columns, p.n = s.c, p.k = k;
      p.a = {gradients, 0, pixels, std::max<index_t>(taps_w * s.o, 1), images.line()};
      p.b.data = weight;
      p.b.offset = from;
      run_pair_product(context, p, out);
    } else {
      TileProduct<S> p;
      p.m = s.n * lines * columns, p.n = s.c, p.k = k;
      p.a = {gradients, 0, pixels, std::max<index_t>(taps_w * s.o, 1), images.line()};
      p.b = RightOperand<S>::along_n(weight, 0, from);
      run_product(context, p, out);
    }
  }
}

/// Where the first tap of each output pixel is read: [pixels].
template <class S>
const index_t* pixel_steps(Context<Cpu>& context, Scratch<Cpu>& scratch, const kernel::Conv2dShape& s,
                           const PaddedImages<S>& x) {
  const index_t pixels = s.n * s.out_h() * s.out_w();
  index_t* steps = scratch.allocate<index_t>(pixels);
  const RowMap map = {s.out_w(), s.out_h(), s.stride * s.c, s.stride * x.line(), x.image()};
  context.executor().parallel_for(pixels, 16384, [&](index_t begin, index_t end) {
    RowCursor pixel(map, begin);
    for (index_t i = begin; i < end; ++i, pixel.next()) steps[i] = pixel.offset();
  });
  return steps;
}

/// On tiles of pairs: one product per line u of the kernel, whose taps (v, c) follow each other in memory.
inline void conv2d_backward_weights_of_pairs(Context<Cpu>& context, const kernel::Conv2dShape& s, const bfloat16* x,
                                             const bfloat16* dy, bfloat16* dweight, bool accumulate) {
  Scratch<Cpu> scratch(context);
  const index_t run = s.kernel_w * s.c;
  const auto images = pad_images<bfloat16>(context, scratch, x, s.n, s.h, s.w, s.c, s.pad_top, s.pad_left,
                                           s.h + s.pad_top + s.pad_bottom, s.w + s.pad_left + s.pad_right);
  PairProduct p;
  p.m = s.o, p.n = run, p.k = s.n * s.out_h() * s.out_w(), p.batch = s.kernel_h;
  p.a.data = dy;
  p.a.offset = even_steps(scratch, p.k, s.o);
  p.b.data = images.data;
  p.b.offset = pixel_steps(context, scratch, s, images);
  p.b.batch_step = images.line();
  TileOutput<bfloat16> out;
  out.c = dweight;
  out.rows = even_rows(s.o, s.kernel_h * run);
  out.beta = accumulate ? 1.0f : 0.0f;
  out.batch_c = run;
  run_pair_product(context, p, out);
}

template <class T>
void conv2d_backward_weights(Context<Cpu>& context, const kernel::Conv2dShape& s, const T* x, const T* dy, T* dweight,
                             bool accumulate) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (multiplies_pairs<T>()) return conv2d_backward_weights_of_pairs(context, s, x, dy, dweight, accumulate);
  }
  using S = compute_t<T>;
  Scratch<Cpu> scratch(context);
  const index_t pixels = s.n * s.out_h() * s.out_w(), run = s.kernel_w * s.c;
  TileProduct<S> p;
  const auto images = pad_images<S>(context, scratch, x, s.n, s.h, s.w, s.c, s.pad_top, s.pad_left,
                                    s.h + s.pad_top + s.pad_bottom, s.w + s.pad_left + s.pad_right);
  const S* gradients = as_compute<S>(context, scratch, dy, pixels * s.o);
  const index_t* steps = pixel_steps(context, scratch, s, images);
  p.k = pixels;
  TileOutput<T> out;
  out.c = dweight;
  out.beta = accumulate ? 1.0f : 0.0f;
  if (run >= 2 * p.kernel->lanes) {
    // x in the registers, one product per line u of the kernel: its taps (v, c) follow each other in memory.
    p.m = s.o, p.n = run;
    p.batch = s.kernel_h;
    p.a.data = gradients;
    p.a.rows = even_rows(s.o, 1);
    p.a.offset = even_steps(scratch, pixels, s.o);
    out.rows = even_rows(s.o, s.kernel_h * run);
    out.batch_c = run;
    p.b = RightOperand<S>::along_n(images.data, images.line(), steps);
  } else {
    // Few channels would leave these registers empty: dy in the registers, written transposed.
    p.m = s.kernel_h * run, p.n = s.o;
    p.a.data = images.data;
    p.a.rows = {run, s.kernel_h, 1, images.line(), 0};
    p.a.offset = steps;
    out.rows = even_rows(p.m, 1);
    out.column_step = p.m;
    p.b = RightOperand<S>::along_n(gradients, 0, even_steps(scratch, pixels, s.o));
  }
  run_product(context, p, out);
}

}  // namespace detail

namespace kernel {

template <>
struct Conv2d<Cpu> {
  template <class T>
  static void forward(Context<Cpu>& context, const Conv2dShape& s, const T* x, const T* weight, const T* bias, T* y) {
    if constexpr (detail::has_winograd<T>) {
      if (detail::winograd_pays<T>(detail::WinogradShape::forward(s), s))
        return detail::winograd_forward(context, s, x, weight, bias, y, detail::WinogradParts::of(context));
    }
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (detail::multiplies_pairs<T>()) return detail::conv2d_forward<T>(context, s, x, weight, bias, y);
    }
    detail::conv2d_forward<compute_t<T>>(context, s, x, weight, bias, y);
  }

  template <class T>
  static void backward_data(Context<Cpu>& context, const Conv2dShape& s, const T* dy, const T* weight, T* dx,
                            bool accumulate) {
    if constexpr (detail::has_winograd<T>) {
      if (detail::winograd_pays<T>(detail::WinogradShape::backward_data(s), s))
        return detail::winograd_backward_data(context, s, dy, weight, dx, accumulate, detail::WinogradParts::of(context));
    }
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (detail::multiplies_pairs<T>())
        return detail::conv2d_backward_data<T>(context, s, dy, weight, dx, accumulate);
    }
    detail::conv2d_backward_data<compute_t<T>>(context, s, dy, weight, dx, accumulate);
  }

  template <class T>
  static void backward_weights(Context<Cpu>& context, const Conv2dShape& s, const T* x, const T* dy, T* dweight,
                               bool accumulate_weight, T* dbias, bool accumulate_bias) {
    if (dbias != nullptr)
      Reduce<Cpu>::column_sums(context, s.n * s.out_h() * s.out_w(), s.o, dy, dbias, accumulate_bias);
    if (dweight == nullptr) return;
    if constexpr (detail::has_winograd<T>) {
      if (detail::winograd_pays<T>(detail::WinogradShape::forward(s), s))
        return detail::winograd_backward_weights(context, s, x, dy, dweight, accumulate_weight,
                                                 detail::WinogradParts::of(context));
    }
    detail::conv2d_backward_weights(context, s, x, dy, dweight, accumulate_weight);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
