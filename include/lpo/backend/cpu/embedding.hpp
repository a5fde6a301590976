// SPDX-License-Identifier: MIT
// The embedding lookup of the CPU and its gradient, which adds rows of equal ids in index order.
#pragma once

#include <algorithm>
#include <cstring>

#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/kernel/embedding.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct Embedding<Cpu> {
  template <class T>
  static void forward(Context<Cpu>& context, index_t count, index_t width, const std::int32_t* ids, const T* table,
                      T* y) {
    if (width <= 0) return;
    context.executor().parallel_for(count, (32768 + width - 1) / width, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i)
        std::memcpy(static_cast<void*>(y + i * width), table + ids[i] * width,
                    static_cast<std::size_t>(width) * sizeof(T));
    });
  }

  template <class T>
  static void backward(Context<Cpu>& context, index_t count, index_t width, index_t vocabulary, const std::int32_t* ids,
                       const T* dy, T* dtable, bool accumulate) {
    using V = detail::lanes_t<T>;
    if (width <= 0) return;
    if (!accumulate)
      context.executor().parallel_for(vocabulary * width, 65536, [&](index_t begin, index_t end) {
        std::memset(static_cast<void*>(dtable + begin), 0, static_cast<std::size_t>(end - begin) * sizeof(T));
      });
    // Sorted by id, then index: each row of the table is summed in registers and rounded to its storage type once.
    Scratch<Cpu> scratch(context);
    index_t* order = scratch.allocate<index_t>(count);
    for (index_t i = 0; i < count; ++i) order[i] = i;
    std::sort(order, order + count, [&](index_t a, index_t b) { return ids[a] != ids[b] ? ids[a] < ids[b] : a < b; });
    const index_t grain = std::max<index_t>(64, 65536 / std::max<index_t>(1, count) / 64 * 64);  // columns
    context.executor().parallel_for(width, grain, [&](index_t begin, index_t end) {
      for (index_t at = 0; at < count;) {
        index_t next = at + 1;
        while (next < count && ids[order[next]] == ids[order[at]]) ++next;
        T* row = dtable + ids[order[at]] * width;
        detail::for_lanes<V>(begin, end, [&](index_t column, auto lanes) {
          V sum = lanes.load(row + column);
          for (index_t i = at; i < next; ++i) sum += lanes.load(dy + order[i] * width + column);
          lanes.store(row + column, sum);
        });
        at = next;
      }
    });
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
