// SPDX-License-Identifier: MIT
// The convolution and its gradients as matrix products over columns: every shape and storage type, any device.
//
//   columns[pixel, (u, v, channel)] = source[the pixel that tap (u, v) reads, channel], zero outside the image
//   forward           y[pixel, o]         = columns(x) w^T + bias
//   data gradient     dx[pixel, c]        = columns(dy) [(u, v, o), c], the weights with their taps outermost
//   weight gradient   dw[o, (u, v, c)]    = dy^T columns(x)
// One thread gathers up to 16 bytes; columns are made in chunks of whole pixels that follow each other on the stream,
// at most column_bytes of workspace (one pixel's row if that is more). A 1x1 kernel of stride 1 without padding gathers
// nothing. The data gradient of stride s > 1 multiplies the zeros between the pixels of dy too.
#pragma once

#include <algorithm>
#include <cstddef>

#include <lpo/backend/cuda/gemm.cuh>
#include <lpo/kernel/conv2d.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Where the taps of a pixel read. Tap u of the pixel in line i reads line (i * step + direction * u + above) / divisor
/// of the source, if that is whole and inside; columns likewise.
struct TapGather {
  index_t n, h, w, c;  ///< source images [n, h, w, c]
  index_t grid_h, grid_w;
  index_t kernel_h, kernel_w;
  index_t step, direction, above, before, divisor;

  index_t rows() const { return n * grid_h * grid_w; }
  index_t width() const { return kernel_h * kernel_w * c; }
  /// The source itself is the matrix of columns.
  bool is_identity() const {
    return kernel_h == 1 && kernel_w == 1 && step == 1 && divisor == 1 && above == 0 && before == 0 && grid_h == h &&
           grid_w == w;
  }
};

/// A plain matrix product.
inline bool is_pointwise(const kernel::Conv2dShape& s) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.stride == 1 && s.pad_top == 0 && s.pad_bottom == 0 &&
         s.pad_left == 0 && s.pad_right == 0;
}

inline TapGather forward_gather(const kernel::Conv2dShape& s) {
  return {s.n, s.h, s.w, s.c, s.out_h(), s.out_w(), s.kernel_h, s.kernel_w, s.stride, 1, -s.pad_top, -s.pad_left, 1};
}
inline TapGather backward_gather(const kernel::Conv2dShape& s) {
  return {s.n, s.out_h(), s.out_w(), s.o, s.h, s.w, s.kernel_h, s.kernel_w, 1, -1, s.pad_top, s.pad_left, s.stride};
}

/// columns [rows, kernel_h, kernel_w, c] of the pixels from first_row on; `count` vectors of Count channels in all.
template <int Count, class T>
__global__ void gather_taps_kernel(const TapGather g, const T* source, index_t first_row, T* columns, index_t count) {
  const index_t at = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count) return;
  // A chunk has fewer than 2^32 vectors, and 32-bit division is several times cheaper than 64-bit division.
  const auto vector = static_cast<unsigned>(at), vectors = static_cast<unsigned>(g.c / Count);
  const unsigned tap = vector / vectors, channel = (vector - tap * vectors) * Count;
  const unsigned line = tap / static_cast<unsigned>(g.kernel_w), row = line / static_cast<unsigned>(g.kernel_h);
  const index_t v = tap - line * static_cast<unsigned>(g.kernel_w), u = line - row * static_cast<unsigned>(g.kernel_h);
  const index_t pixel = first_row + row, pixel_line = pixel / g.grid_w, image = pixel_line / g.grid_h;
  const index_t down = (pixel_line - image * g.grid_h) * g.step + g.direction * u + g.above;
  const index_t right = (pixel - pixel_line * g.grid_w) * g.step + g.direction * v + g.before;
  NumberVector<T, Count> value{};
  const bool whole = g.divisor == 1 || (down % g.divisor == 0 && right % g.divisor == 0);
  const index_t i = g.divisor == 1 ? down : down / g.divisor, j = g.divisor == 1 ? right : right / g.divisor;
  if (whole && down >= 0 && right >= 0 && i < g.h && j < g.w)
    value = *reinterpret_cast<const NumberVector<T, Count>*>(source + ((image * g.h + i) * g.w + j) * g.c + channel);
  *reinterpret_cast<NumberVector<T, Count>*>(columns + at * Count) = value;
}

/// to [taps, o, c] = from [o, taps, c].
template <class T>
__global__ void taps_outermost_kernel(const T* from, index_t o, index_t taps, index_t c, T* to) {
  const index_t at = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= o * taps * c) return;
  const index_t row = at / c;
  to[at] = from[((row % o) * taps + row / o) * c + at % c];
}

inline constexpr std::size_t column_bytes = std::size_t{256} << 20;

/// Calls use(columns, first_row, rows) for chunks that cover all rows in order; once with 0 rows where there are none.
template <class T, class Use>
void for_column_chunks(Context<Cuda>& context, const TapGather& g, const T* source, Use&& use) {
  const index_t rows = std::max<index_t>(g.rows(), 0), width = g.width();
  if (rows == 0 || width == 0 || g.is_identity()) return use(source, index_t{0}, rows);
  const index_t fitting = static_cast<index_t>(column_bytes / sizeof(T)) / width;
  const index_t chunk = std::min(rows, std::max<index_t>(fitting, 1));
  Scratch<Cuda> scratch(context);
  T* columns = scratch.template allocate<T>(chunk * width);
  constexpr int wide = 16 / sizeof(T);
  const bool vectors = g.c % wide == 0 && common_alignment(source) == 16;
  for (index_t first = 0; first < rows; first += chunk) {
    const index_t taken = std::min(chunk, rows - first), count = taken * width / (vectors ? wide : 1);
    const auto kernel = vectors ? gather_taps_kernel<wide, T> : gather_taps_kernel<1, T>;
    context.launch("gather_taps_kernel", {blocks_for(count, 256), 256}, kernel, g, source, first, columns, count);
    use(static_cast<const T*>(columns), first, taken);
  }
}

template <class T>
void conv2d_columns_forward(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* x, const T* weight,
                            const T* bias, T* y) {
  const TapGather gather = forward_gather(s);
  for_column_chunks(context, gather, x, [&](const T* columns, index_t first, index_t rows) {
    kernel::GemmParams<T> p;
    p.m = rows, p.n = s.o, p.k = gather.width();
    p.a = columns, p.lda = p.k;
    p.b = weight, p.ldb = p.k, p.transpose_b = true;
    p.c = y + first * s.o, p.ldc = s.o;
    p.bias = bias;
    kernel::Gemm<Cuda>::run(context, p);
  });
}

template <class T>
void conv2d_columns_backward_data(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* dy, const T* weight,
                                  T* dx, bool accumulate) {
  const TapGather gather = backward_gather(s);
  const index_t taps = s.kernel_h * s.kernel_w, weights = s.o * taps * s.c;
  Scratch<Cuda> scratch(context);
  if (taps > 1 && weights > 0) {
    T* outermost = scratch.template allocate<T>(weights);
    context.launch("taps_outermost_kernel", {blocks_for(weights, 256), 256}, taps_outermost_kernel<T>, weight, s.o, taps, s.c,
                   outermost);
    weight = outermost;
  }
  for_column_chunks(context, gather, dy, [&](const T* columns, index_t first, index_t rows) {
    kernel::GemmParams<T> p;
    p.m = rows, p.n = s.c, p.k = gather.width();
    p.a = columns, p.lda = p.k;
    p.b = weight, p.ldb = s.c;
    p.c = dx + first * s.c, p.ldc = s.c;
    p.beta = accumulate ? 1.0f : 0.0f;
    kernel::Gemm<Cuda>::run(context, p);
  });
}

template <class T>
void conv2d_columns_backward_weights(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* x, const T* dy,
                                     T* dweight, bool accumulate) {
  const TapGather gather = forward_gather(s);
  for_column_chunks(context, gather, x, [&](const T* columns, index_t first, index_t rows) {
    kernel::GemmParams<T> p;
    p.m = s.o, p.n = gather.width(), p.k = rows;
    p.a = dy + first * s.o, p.lda = s.o, p.transpose_a = true;
    p.b = columns, p.ldb = p.n;
    p.c = dweight, p.ldc = p.n;
    p.beta = accumulate || first > 0 ? 1.0f : 0.0f;
    kernel::Gemm<Cuda>::run(context, p);
  });
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
