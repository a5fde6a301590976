// SPDX-License-Identifier: MIT
// What the CPU norms share: how rows are cut into chunks, sums over a row, sums over chunks in order.
#pragma once

#include <algorithm>

#include <lpo/backend/cpu/lanes.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Elements of one chunk of work: large against a thread's start, small against a core's cache.
inline constexpr index_t norm_chunk = 32768;

inline index_t norm_rows(index_t c) { return std::max<index_t>(1, norm_chunk / std::max<index_t>(1, c)); }

/// sum over [0, c) of body(at, lanes), in four chains; `body` must give zero in the lanes beyond c.
template <class V, class Body>
LPO_ALWAYS_INLINE V sum_row(index_t c, Body&& body) {
  constexpr index_t width = LaneTraits<V>::width;
  V sum[4] = {};
  index_t at = 0;
  for (; at + 4 * width <= c; at += 4 * width)
    unroll<4>([&](auto i) __attribute__((always_inline)) { sum[i] += body(at + i * width, AllLanes<V>{}); });
  for_lanes<V>(
      at, c, [&](index_t rest, auto lanes) __attribute__((always_inline)) { sum[0] += body(rest, lanes); });
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/// Calls body(channel, total), total = sum over blocks of partial[block * stride + channel] in double, in block order.
template <class S, class Body>
void sum_blocks(const S* partial, index_t blocks, index_t stride, index_t c, Body&& body) {
  constexpr index_t tile = 16;
  for (index_t first = 0; first < c; first += tile) {
    const index_t count = std::min(tile, c - first);
    double total[tile] = {};
    for (index_t block = 0; block < blocks; ++block)
      for (index_t j = 0; j < count; ++j) total[j] += static_cast<double>(partial[block * stride + first + j]);
    for (index_t j = 0; j < count; ++j) body(first + j, total[j]);
  }
}

/// target[channel] (+)= total
template <class T>
void put_total(T* target, index_t channel, double total, bool accumulate) {
  store_lanes(target + channel, total + (accumulate ? load_lanes<double>(target + channel) : 0.0));
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
