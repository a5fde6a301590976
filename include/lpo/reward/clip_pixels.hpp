// SPDX-License-Identifier: MIT
// clip_pixels: decoded pictures as CLIP's vision tower reads them — bicubic at its size, limited, normalised; on the
// device.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <lpo/kernel/gemm.hpp>
#include <lpo/tensor/operators.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// Cubic convolution (Keys, a = -0.75) with half-pixel centres and repeated edges, without antialiasing, as a matrix
/// [to, from]: rows [first, first + to) of the `scaled` positions that `from` becomes.
inline std::vector<double> bicubic_matrix(index_t from, index_t scaled, index_t first, index_t to) {
  constexpr double a = -0.75;
  const auto weight = [](double x) {
    x = std::fabs(x);
    return x <= 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0.0;
  };
  std::vector<double> matrix(static_cast<std::size_t>(to * from), 0.0);
  const double ratio = static_cast<double>(from) / static_cast<double>(scaled);
  for (index_t i = 0; i < to; ++i) {
    const double centre = (static_cast<double>(first + i) + 0.5) * ratio - 0.5;
    const auto left = static_cast<index_t>(std::floor(centre));
    for (index_t k = left - 1; k <= left + 2; ++k) {
      const index_t at = std::clamp<index_t>(k, 0, from - 1);
      matrix[static_cast<std::size_t>(i * from + at)] += weight(centre - static_cast<double>(k));
    }
  }
  return matrix;
}

}  // namespace detail

/// Pictures [n, h, w, 3] in [-1, 1] -> `pixels` [n, size, size, 3]: the shorter side becomes `size`, the middle of the
/// longer one is kept, values become (x/2 + 1/2, limited to [0, 1], minus CLIP's mean) over its deviation.
template <class T, class Device>
void clip_pixels(Context<Device>& context, std::type_identity_t<View<const T, 4, Device>> pictures,
                 const View<T, 4, Device>& pixels) {
  static_assert(std::is_same_v<T, compute_t<T>>, "lpo clip_pixels: pictures must be float or double");
  const index_t n = pictures.extent(0), h = pictures.extent(1), w = pictures.extent(2), size = pixels.extent(1);
  if (pictures.extent(3) != 3 || !(pixels.extents == Extents<4>{n, size, size, 3}) || h < 1 || w < 1)
    throw ShapeError(message("[clip_pixels] pictures ", to_string(pictures.extents), " to ", to_string(pixels.extents),
                             "; expected [n, h, w, 3] to [n, size, size, 3]"));
  if (n == 0) return;
  const double scale = static_cast<double>(size) / static_cast<double>(std::min(h, w));
  Scratch<Device> scratch(context);
  const auto device = [&](const std::vector<double>& values) {
    std::vector<T> converted(values.begin(), values.end());
    T* const memory = scratch.template allocate<T>(static_cast<index_t>(values.size()));
    context.copy_from_host(memory, converted.data(), converted.size() * sizeof(T));
    return memory;
  };
  const auto matrix = [&](index_t from) {
    const auto scaled = static_cast<index_t>(static_cast<double>(from) * scale + 0.5);
    return device(detail::bicubic_matrix(from, scaled, (scaled - size) / 2, size));
  };

  T* const short_rows = scratch.template allocate<T>(n * size * w * 3);
  kernel::GemmParams<T> rows;  // of each picture: [size, h] [h, 3 w]
  rows.m = size, rows.n = 3 * w, rows.k = h;
  rows.a = matrix(h), rows.lda = h;
  rows.b = pictures.data, rows.ldb = 3 * w;
  rows.c = short_rows, rows.ldc = 3 * w;
  rows.batch = n, rows.batch_stride_b = h * w * 3, rows.batch_stride_c = size * w * 3;
  kernel::Gemm<Device>::run(context, rows);
  kernel::GemmParams<T> columns;  // of each row: [size, w] [w, 3]
  columns.m = size, columns.n = 3, columns.k = w;
  columns.a = matrix(w), columns.lda = w;
  columns.b = short_rows, columns.ldb = 3;
  columns.c = pixels.data, columns.ldc = 3;
  columns.batch = n * size, columns.batch_stride_b = 3 * w, columns.batch_stride_c = 3 * size;
  kernel::Gemm<Device>::run(context, columns);

  const View<const T, 4, Device> mean(device({0.48145466, 0.4578275, 0.40821073}), Extents<4>{1, 1, 1, 3});
  const View<const T, 4, Device> deviation(device({0.26862954, 0.26130258, 0.27577711}), Extents<4>{1, 1, 1, 3});
  evaluate(&context, pixels, (clamp(0.5 * pixels + 0.5, 0, 1) - mean) / deviation);
}

}  // namespace lpo::inline LPO_ABI
