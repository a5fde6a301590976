// SPDX-License-Identifier: MIT
// 3 x 3 convolutions of stride 1 with a quarter of the multiplications: Winograd's minimal filtering.
//
// A tile of 4 x 4 outputs needs 36 multiplications a channel instead of 144 (Winograd 1980; Lavin and Gray, arXiv
// 1509.09308, F(4x4, 3x3)). With matrices B, G and A of the points p = 0, 5/8, -5/8, 3/2, -3/2 and infinity,
//   y = A^T [ sum_c (G g_c G^T) . (B^T d_c B) ] A
// for the 6 x 6 tile d of the padded image and the filter g; and for the gradient of the filter
//   dg_c = G^T [ sum_tiles (B^T d_c B) . (A dy A^T) ] G.
// The row of a point p, over the other four points q, and that of infinity, over all five, are
//   A     p^0 ... p^3,                          0 0 0 1
//   G     p^0 ... p^2 / prod_q (p - q),         0 0 1
//   B^T   coefficients of prod_q (t - q) by t^0 ... t^5;
// those of A and B are exact in float. At each of the 36 places of a tile the sum is a matrix product, which the register
// tile runs. Transformed filters take four times their memory, so maps of few pixels gain nothing. Rounding errors are 13
// to 19 times 2^-24 of the result's size, four to five times those of the direct way; with the integers 1 and 2 for points,
// twice that (bench/NOTES-cpu.md). They go with the largest numbers of a tile, not of the nine pixels that an output reads.
//
// A NaN or an infinity of x or dy makes up to 5 x 5 outputs of its image NaN, where the direct way has 3 x 3; other images
// stay as they are. Sums on the way are up to four times the largest result where operands are random: they overflow that
// much earlier.
#pragma once

#include <array>

#include <lpo/backend/cpu/padded_images.hpp>
#include <lpo/backend/cpu/product_run.hpp>
#include <lpo/kernel/conv2d.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// The transforms, each of one dimension. A pair of points +-p shares the even and the odd part of its values.
struct Winograd {
  static constexpr int outputs = 4, places = 6;    // of a tile along each dimension
  static constexpr int squares = places * places;  // places of a tile in all: a matrix product for each
  static constexpr float a = 0.625f, b = 1.5f, aa = a * a, bb = b * b;
  static constexpr float at_0 = 1.0f / (aa * bb), at_a = 0.5f / (aa * (aa - bb)), at_b = 0.5f / (bb * (bb - aa));

  struct Filter {  ///< u = G g
    static constexpr int from = 3, to = places;
    template <class V>
    static LPO_ALWAYS_INLINE void apply(const V (&g)[from], V (&u)[to]) {
      const V even_a = at_a * g[0] + (at_a * aa) * g[2], odd_a = (at_a * a) * g[1];
      const V even_b = at_b * g[0] + (at_b * bb) * g[2], odd_b = (at_b * b) * g[1];
      u[0] = at_0 * g[0];
      u[1] = even_a + odd_a, u[2] = even_a - odd_a, u[3] = even_b + odd_b, u[4] = even_b - odd_b;
      u[5] = g[2];
    }
  };
  struct FilterGradient {  ///< g = G^T u
    static constexpr int from = places, to = 3;
    template <class V>
    static LPO_ALWAYS_INLINE void apply(const V (&u)[from], V (&g)[to]) {
      const V even_a = u[1] + u[2], odd_a = u[1] - u[2], even_b = u[3] + u[4], odd_b = u[3] - u[4];
      g[0] = at_0 * u[0] + at_a * even_a + at_b * even_b;
      g[1] = (at_a * a) * odd_a + (at_b * b) * odd_b;
      g[2] = (at_a * aa) * even_a + (at_b * bb) * even_b + u[5];
    }
  };
  struct Image {  ///< v = B^T d
    static constexpr int from = places, to = places;
    template <class V>
    static LPO_ALWAYS_INLINE void apply(const V (&d)[from], V (&v)[to]) {
      const V even_a = d[4] - bb * d[2], odd_a = a * d[3] - (a * bb) * d[1];
      const V even_b = d[4] - aa * d[2], odd_b = b * d[3] - (b * aa) * d[1];
      v[0] = (aa * bb) * d[0] - (aa + bb) * d[2] + d[4];
      v[1] = even_a + odd_a, v[2] = even_a - odd_a, v[3] = even_b + odd_b, v[4] = even_b - odd_b;
      v[5] = (aa * bb) * d[1] - (aa + bb) * d[3] + d[5];
    }
  };
  struct Result {  ///< y = A^T m
    static constexpr int from = places, to = outputs;
    template <class V>
    static LPO_ALWAYS_INLINE void apply(const V (&m)[from], V (&y)[to]) {
      const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
      y[0] = m[0] + even_a + even_b;
      y[1] = a * odd_a + b * odd_b;
      y[2] = aa * even_a + bb * even_b;
      y[3] = (a * aa) * odd_a + (b * bb) * odd_b + m[5];
    }
  };
  struct ResultGradient {  ///< m = A y
    static constexpr int from = outputs, to = places;
    template <class V>
    static LPO_ALWAYS_INLINE void apply(const V (&y)[from], V (&m)[to]) {
      const V even_a = y[0] + aa * y[2], odd_a = a * y[1] + (a * aa) * y[3];
      const V even_b = y[0] + bb * y[2], odd_b = b * y[1] + (b * bb) * y[3];
      m[0] = y[0];
      m[1] = even_a + odd_a, m[2] = even_a - odd_a, m[3] = even_b + odd_b, m[4] = even_b - odd_b;
      m[5] = y[3];
    }
  };

  /// The transform of a square: from(i, j) gives an element, to(i, j, value) takes one of the result. Lines and columns in
  /// loops: the square is more than the registers hold, and unrolled code takes the compiler long.
  template <class Transform, class V, class From, class To>
  static LPO_ALWAYS_INLINE void both_ways(From&& from, To&& to) {
    V half_way[Transform::from][Transform::to];
    for (int i = 0; i < Transform::from; ++i) {
      V line[Transform::from];
      unroll<Transform::from>([&](auto j) __attribute__((always_inline)) { line[j] = from(i, j); });
      Transform::apply(line, half_way[i]);
    }
    unroll<Transform::to>([&](auto j) __attribute__((always_inline)) {
      V column[Transform::from], values[Transform::to];
      unroll<Transform::from>([&](auto i) __attribute__((always_inline)) { column[i] = half_way[i][j]; });
      Transform::apply(column, values);
      unroll<Transform::to>([&](auto i) __attribute__((always_inline)) { to(i, j, values[i]); });
    });
  }
};

/// A 3 x 3 filter of stride 1: y[n, i, j, o] = sum_(u, v < 3; c) x[n, i + u - top, j + v - left, c] w[o, u, v, c], on
/// Winograd's tiles, which are numbered by image, line and column.
struct WinogradShape {
  index_t n, h, w, c, o, out_h, out_w, top, left;

  /// The forward pass of a convolution.
  static WinogradShape forward(const kernel::Conv2dShape& s) {
    return {s.n, s.h, s.w, s.c, s.o, s.out_h(), s.out_w(), s.pad_top, s.pad_left};
  }
  /// Its gradient towards x: the filter turned round, on dy.
  static WinogradShape backward_data(const kernel::Conv2dShape& s) {
    return {s.n, s.out_h(), s.out_w(), s.o, s.c, s.h, s.w, 2 - s.pad_top, 2 - s.pad_left};
  }

  index_t tile_lines() const { return (out_h + Winograd::outputs - 1) / Winograd::outputs; }
  index_t tile_columns() const { return (out_w + Winograd::outputs - 1) / Winograd::outputs; }
  index_t tiles() const { return n * tile_lines() * tile_columns(); }
};

/// Not double, whose sums others are compared with.
template <class T>
inline constexpr bool has_winograd = !std::is_same_v<T, double>;

inline constexpr index_t winograd_channels = 16;  ///< c and o are multiples of it, and of the lanes of any machine

/// Whether a pass over storage T takes less time this way than directly: the products and what the transforms cost, in
/// multiplications of floats, fitted to a Zen 4. Where tile registers multiply bfloat16 it never does.
template <class T>
bool winograd_pays(const WinogradShape& f, const kernel::Conv2dShape& s) {
  if (s.kernel_h != 3 || s.kernel_w != 3 || s.stride != 1) return false;
  if (f.c % winograd_channels != 0 || f.o % winograd_channels != 0) return false;
  if (f.top < 0 || f.left < 0 || f.n * f.c * f.o == 0) return false;
  const bool pairs = std::is_same_v<T, bfloat16> && machine_multiplies_pairs();
  if (pairs && machine_multiplies_tiles()) return false;
  const auto number = [](index_t count) { return static_cast<double>(count); };
  const double filters = number(f.c) * number(f.o), rows = number((f.tiles() + tile_rows - 1) / tile_rows * tile_rows);
  const double transform = filters < 3e5 ? 200 : 800;  // the more if they leave the caches
  const double cost = (Winograd::squares * rows + transform) * filters + 1000 * number(f.tiles()) * number(f.c + f.o);
  return cost < (pairs ? 0.5 : 1.0) * 9 * number(f.n * f.out_h * f.out_w) * filters;
}

/// Squares of `Transform::from` lines and columns of images, one every `outputs` pixels, transformed: tiles [first,
/// first + count) and channels [channel, channel + width) to [squares, count, width].
template <class Transform>
void transform_tiles(Context<Cpu>& context, const WinogradShape& f, const PaddedImages<float>& images, index_t first,
                     index_t count, index_t channel, index_t width, float* to) {
  const RowMap map = {f.tile_columns(), f.tile_lines(), Winograd::outputs * images.c,
                      Winograd::outputs * images.line(), images.image()};
  context.executor().parallel_for(count, 1024 / width + 1, [&](index_t begin, index_t end) {
    RowCursor tile(map, first + begin);
    for (index_t at = begin; at < end; ++at, tile.next())
      with_lanes<float>([=, from = images.data + tile.offset() + channel, target = to + at * width, line = images.line(),
                     pixel = images.c, step = count * width]<class V>() __attribute__((always_inline)) {
        for (index_t l = 0; l < width; l += LaneTraits<V>::width) {
          Winograd::both_ways<Transform, V>(
              [&](index_t i, index_t j) __attribute__((always_inline)) { return load_all<V>(from + i * line + j * pixel + l); },
              [&](index_t i, index_t j, V value) __attribute__((always_inline)) {
                store_lanes(target + (i * Winograd::places + j) * step + l, value);
              });
        }
      });
  });
}

/// The nine taps of a filter as right operands of columns o and steps c, in the order in which the image is read.
using FilterTaps = std::array<RightOperand<float>, 9>;

/// Elements between the places of transformed filters of `columns` output channels, a multiple of a panel's. Some lines
/// of memory more than they need: 36 places would else share a few sets of the cache.
inline index_t filter_step(index_t c, index_t columns) { return c * columns + 80; }

/// Transformed filters of `count` output channels from `first` on, as packed right operands: [squares][panels, c,
/// columns].
inline void transform_filters(Context<Cpu>& context, const WinogradShape& f, const FilterTaps& taps, index_t first,
                              index_t count, float* to) {
  constexpr index_t block = winograd_channels;
  const TileKernel<float>& kernel = tile_kernel<float>();
  const index_t columns = kernel.columns(), panels = (count + columns - 1) / columns;
  const index_t blocks = f.c / block;
  context.executor().parallel_for(panels * blocks, 1, [&](index_t begin, index_t end) {
    alignas(64) float packed[9 * block * tile_columns_max];
    for (index_t at = begin; at < end; ++at) {
      const index_t panel = at / blocks, step = at % blocks * block;
      const index_t valid = std::min(columns, count - panel * columns);
      float* tap = packed;
      for (const RightOperand<float>& operand : taps) {
        operand.pack(operand, kernel, 0, first + panel * columns, step, step + block, tap, valid);
        tap += block * columns;
      }
      const index_t used = (valid + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
      with_lanes<float>([=, from = &packed[0], target = to + (panel * f.c + step) * columns, tap_step = block * columns,
                     place_step = filter_step(f.c, panels * columns)]<class V>() __attribute__((always_inline)) {
        for (index_t l = 0; l < tap_step; l += columns)
          for (index_t j = l; j < l + used; j += LaneTraits<V>::width)
            Winograd::both_ways<Winograd::Filter, V>(
                [&](index_t u, index_t v) __attribute__((always_inline)) {
                  return load_lanes<V>(from + (u * 3 + v) * tap_step + j);
                },
                [&](index_t u, index_t v, V value) __attribute__((always_inline)) {
                  store_lanes(target + (u * Winograd::places + v) * place_step + j, value);
                });
      });
    }
  });
}

/// Output channels [column, column + width) of tiles [first, first + count) from their products [squares, count,
/// width].
template <class T>
void store_tiles(Context<Cpu>& context, const WinogradShape& f, const float* products, index_t first, index_t count,
                 index_t column, index_t width, const T* bias, T* y, bool accumulate) {
  constexpr index_t outputs = Winograd::outputs;
  const index_t columns = f.tile_columns(), lines = f.tile_lines();
  context.executor().parallel_for(count, 1024 / width + 1, [&](index_t begin, index_t end) {
    for (index_t at = begin; at < end; ++at) {
      const index_t tile = first + at, i0 = tile / columns % lines * outputs, j0 = tile % columns * outputs;
      with_lanes<float>([=, from = products + at * width, step = count * width, line = f.out_w * f.o, pixel = f.o,
                     to = y + ((tile / columns / lines * f.out_h + i0) * f.out_w + j0) * f.o + column,
                     high = f.out_h - i0, wide = f.out_w - j0,
                     start = bias != nullptr ? bias + column : nullptr]<class V>() __attribute__((always_inline)) {
        for (index_t o = 0; o < width; o += LaneTraits<V>::width) {
          const V start_value = start != nullptr ? load_all<V>(start + o) : V{};
          Winograd::both_ways<Winograd::Result, V>(
              [&](index_t i, index_t j) __attribute__((always_inline)) {
                return load_all<V>(from + (i * Winograd::places + j) * step + o);
              },
              [&](index_t i, index_t j, V value) __attribute__((always_inline)) {
                if (i >= high || j >= wide) return;
                T* const element = to + i * line + j * pixel + o;
                store_lanes(element, value + (accumulate ? load_all<V>(element) : start_value));
              });
        }
      });
    }
  });
}

/// How much of the transformed images and filters is made at a time: the more, the less often threads wait for each other;
/// filters should not leave the caches before they are used.
struct WinogradParts {
  index_t image_bytes, filter_bytes;

  static WinogradParts of(Context<Cpu>& context) {
    return {index_t{64} << 20, std::max<index_t>(8, 2 * context.executor().threads()) << 20};
  }
};

/// How many of `count` things of `bytes` each are made at a time: equal parts of at most `most` bytes, rounded up to a
/// multiple of `unit`.
inline index_t equal_parts(index_t count, index_t bytes, index_t most, index_t unit) {
  const index_t parts = std::max<index_t>(1, (count * bytes + most - 1) / most);
  return ((count + parts - 1) / parts + unit - 1) / unit * unit;
}

/// The products p at each place of a tile: [squares, p.m, p.n].
inline void run_at_places(Context<Cpu>& context, TileProduct<float> p, float* to) {
  p.batch = Winograd::squares;
  p.sliced = false;  // the slices would depend on m and n, so on the parts
  TileOutput<float> out;
  out.c = to;
  out.rows = even_rows(p.m, p.n);
  out.batch_c = p.m * p.n;
  run_product(context, p, out);
}

/// The filter on x, with bias or added to y. Bits do not depend on the parts.
template <class T>
void winograd_filter(Context<Cpu>& context, const WinogradShape& f, const T* x, const FilterTaps& taps, const T* bias,
                     T* y, bool accumulate, const WinogradParts& parts) {
  constexpr index_t squares = Winograd::squares, element = sizeof(float);
  Scratch<Cpu> scratch(context);
  const auto images = pad_images<float>(context, scratch, x, f.n, f.h, f.w, f.c, f.top, f.left,
                                        f.tile_lines() * Winograd::outputs + 2, f.tile_columns() * Winograd::outputs + 2);
  const index_t tiles = f.tiles(), panel = tile_kernel<float>().columns();
  const index_t some_columns = equal_parts(f.o, squares * f.c * element, parts.filter_bytes, panel);
  const index_t widest = std::max(f.c, std::min(some_columns, f.o));  // of transformed images and products
  const index_t some_tiles = equal_parts(tiles, squares * widest * element, parts.image_bytes, tile_rows);
  float* const filters = scratch.allocate<float>(squares * filter_step(f.c, some_columns));
  float* const transformed = scratch.allocate<float>(squares * some_tiles * f.c);
  float* const products = scratch.allocate<float>(squares * some_tiles * std::min(some_columns, f.o));
  for (index_t tile = 0; tile < tiles; tile += some_tiles) {
    const index_t count = std::min(some_tiles, tiles - tile);
    transform_tiles<Winograd::Image>(context, f, images, tile, count, 0, f.c, transformed);
    for (index_t column = 0; column < f.o; column += some_columns) {
      const index_t width = std::min(some_columns, f.o - column);
      if (tile == 0 || some_columns < f.o) transform_filters(context, f, taps, column, width, filters);
      TileProduct<float> p;
      p.m = count, p.n = width, p.k = f.c;
      p.a = {transformed, count * f.c, even_rows(count, f.c), f.c};
      p.b = RightOperand<float>::packed(filters, filter_step(f.c, p.panels() * panel));
      run_at_places(context, p, products);
      store_tiles(context, f, products, tile, count, column, width, bias, y, accumulate);
    }
  }
}

// The three passes of a convolution, as kernel/conv2d.hpp defines them, for kernels of 3 x 3 and stride 1; that towards x
// for padding of at most 2 above and on the left; c and o multiples of winograd_channels. Operands are multiplied as float.

template <class T>
void winograd_forward(Context<Cpu>& context, const kernel::Conv2dShape& s, const T* x, const T* weight, const T* bias,
                      T* y, const WinogradParts& parts) {
  FilterTaps taps;
  for (index_t tap = 0; tap < 9; ++tap)
    taps[static_cast<std::size_t>(tap)] =
        RightOperand<float>::along_k(weight + tap * s.c, 0, even_rows(s.o, 9 * s.c));
  winograd_filter(context, WinogradShape::forward(s), x, taps, bias, y, false, parts);
}

template <class T>
void winograd_backward_data(Context<Cpu>& context, const kernel::Conv2dShape& s, const T* dy, const T* weight, T* dx,
                            bool accumulate, const WinogradParts& parts) {
  Scratch<Cpu> scratch(context);
  const index_t* const outputs = even_steps(scratch, s.o, 9 * s.c);
  FilterTaps taps;
  for (index_t tap = 0; tap < 9; ++tap)
    taps[static_cast<std::size_t>(8 - tap)] = RightOperand<float>::along_n(weight + tap * s.c, 0, outputs);
  winograd_filter(context, WinogradShape::backward_data(s), dy, taps, static_cast<const T*>(nullptr), dx, accumulate,
                  parts);
}

/// dweight [o, 3, 3, c] (+)= from the gradient of the filters [squares, count, width] of output channels [first, first +
/// count) and channels [channel, channel + width).
template <class T>
void store_filters(Context<Cpu>& context, const WinogradShape& f, const float* gradient, index_t first, index_t count,
                   index_t channel, index_t width, T* dweight, bool accumulate) {
  context.executor().parallel_for(count, 1024 / width + 1, [&](index_t begin, index_t end) {
    for (index_t o = begin; o < end; ++o)
      with_lanes<float>([=, from = gradient + o * width, step = count * width, c = f.c,
                     to = dweight + (first + o) * 9 * f.c + channel]<class V>() __attribute__((always_inline)) {
        for (index_t l = 0; l < width; l += LaneTraits<V>::width) {
          Winograd::both_ways<Winograd::FilterGradient, V>(
              [&](index_t i, index_t j) __attribute__((always_inline)) {
                return load_all<V>(from + (i * Winograd::places + j) * step + l);
              },
              [&](index_t u, index_t v, V value) __attribute__((always_inline)) {
                T* const element = to + (u * 3 + v) * c + l;
                store_lanes(element, accumulate ? value + load_all<V>(element) : value);
              });
        }
      });
  });
}

/// Channels of x and of dy are transformed in parts, on which bits do not depend.
template <class T>
void winograd_backward_weights(Context<Cpu>& context, const kernel::Conv2dShape& s, const T* x, const T* dy, T* dweight,
                               bool accumulate, const WinogradParts& parts) {
  constexpr index_t squares = Winograd::squares, element = sizeof(float);
  const WinogradShape f = WinogradShape::forward(s);
  Scratch<Cpu> scratch(context);
  const index_t lines = f.tile_lines() * Winograd::outputs, columns = f.tile_columns() * Winograd::outputs;
  const auto images = pad_images<float>(context, scratch, x, f.n, f.h, f.w, f.c, f.top, f.left, lines + 2, columns + 2);
  const auto gradients = pad_images<float>(context, scratch, dy, f.n, f.out_h, f.out_w, f.o, 0, 0, lines, columns);
  const index_t tiles = f.tiles(), panel = tile_kernel<float>().columns(), bytes = squares * tiles * element;
  const index_t some_c = std::min(f.c, equal_parts(f.c, bytes, parts.image_bytes, panel));
  const index_t some_o = std::min(f.o, equal_parts(f.o, std::max(bytes, squares * some_c * element),
                                                   parts.image_bytes / 2, tile_rows * winograd_channels / 2));
  float* const left = scratch.allocate<float>(squares * tiles * some_o);
  float* const right = scratch.allocate<float>(squares * tiles * some_c);
  float* const sums = scratch.allocate<float>(squares * some_o * some_c);
  for (index_t channel = 0; channel < f.c; channel += some_c) {
    const index_t width = std::min(some_c, f.c - channel);
    transform_tiles<Winograd::Image>(context, f, images, 0, tiles, channel, width, right);
    for (index_t o = 0; o < f.o; o += some_o) {
      const index_t count = std::min(some_o, f.o - o);
      transform_tiles<Winograd::ResultGradient>(context, f, gradients, 0, tiles, o, count, left);
      Scratch<Cpu> inner(context);
      TileProduct<float> p;
      p.m = count, p.n = width, p.k = tiles;
      p.a.data = left;
      p.a.batch_step = tiles * count;
      p.a.rows = even_rows(count, 1);
      p.a.offset = even_steps(inner, tiles, count);
      p.b = RightOperand<float>::along_n(right, tiles * width, even_steps(inner, tiles, width));
      run_at_places(context, p, sums);
      store_filters(context, f, sums, o, count, channel, width, dweight, accumulate);
    }
  }
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
