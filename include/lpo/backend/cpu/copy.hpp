// SPDX-License-Identifier: MIT
// The two-dimensional copy of the CPU: memcpy of rows, or addition in packs.
#pragma once

#include <algorithm>
#include <cstring>

#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/kernel/copy.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct CopyRows<Cpu> {
  template <class T>
  static void run(Context<Cpu>& context, index_t rows, index_t width, const T* source, index_t source_row, T* target,
                  index_t target_row, bool accumulate) {
    if (rows <= 0 || width <= 0) return;
    constexpr index_t piece = 32768;  // elements per chunk: below that, waking a thread costs more than the copy
    if (source_row == width && target_row == width) {
      context.executor().parallel_for(rows * width, piece, [&](index_t begin, index_t end) {
        row(end - begin, source + begin, target + begin, accumulate);
      });
      return;
    }
    context.executor().parallel_for(rows, (piece + width - 1) / width, [&](index_t begin, index_t end) {
      for (index_t r = begin; r < end; ++r) row(width, source + r * source_row, target + r * target_row, accumulate);
    });
  }

 private:
  template <class T>
  static void row(index_t width, const T* source, T* target, bool accumulate) {
    using V = detail::lanes_t<T>;
    if (!accumulate) {
      std::memcpy(static_cast<void*>(target), source, static_cast<std::size_t>(width) * sizeof(T));
      return;
    }
    detail::for_lanes<V>(0, width, [&](index_t at, auto lanes) {
      lanes.store(target + at, lanes.load(target + at) + lanes.load(source + at));
    });
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
