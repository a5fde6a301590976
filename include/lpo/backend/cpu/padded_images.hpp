// SPDX-License-Identifier: MIT
// Images of the CPU's convolutions, with zeros around them: what reads them needs no case for an edge.
#pragma once

#include <lpo/backend/cpu/product_pack.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Images [n, lines, columns, c] in the arithmetic type.
template <class S>
struct PaddedImages {
  const S* data;
  index_t lines, columns, c;

  index_t line() const { return columns * c; }
  index_t image() const { return lines * columns * c; }
};

/// x [n, h, w, c] with `top` lines and `left` columns of zeros before it, extended or cut to lines x columns; x itself
/// where that changes nothing.
template <class S, class T>
PaddedImages<S> pad_images(Context<Cpu>& context, Scratch<Cpu>& scratch, const T* x, index_t n, index_t h, index_t w,
                           index_t c, index_t top, index_t left, index_t lines, index_t columns) {
  if constexpr (std::is_same_v<S, T>) {
    if (top == 0 && left == 0 && lines == h && columns == w) return {x, lines, columns, c};
  }
  S* data = scratch.allocate<S>(n * lines * columns * c);
  const index_t width = columns * c, before = std::min(left, columns) * c;
  const index_t kept = std::clamp<index_t>(columns - left, 0, w) * c;
  context.executor().parallel_for(n * lines, 16384 / std::max<index_t>(1, width) + 1, [&](index_t begin, index_t end) {
    for (index_t at = begin; at < end; ++at) {
      S* to = data + at * width;
      const index_t line = at % lines - top;
      if (line < 0 || line >= h) {
        std::fill_n(to, width, S{});
        continue;
      }
      std::fill_n(to, before, S{});
      convert_line(x + ((at / lines) * h + line) * w * c, kept, to + before);
      std::fill_n(to + before + kept, width - before - kept, S{});
    }
  });
  return {data, lines, columns, c};
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
