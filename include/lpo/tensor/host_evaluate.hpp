// SPDX-License-Identifier: MIT
// How host devices walk a statement: SIMD packs along rows, strided scalars otherwise, threads over fixed pieces.
#pragma once

#include <algorithm>

#include <lpo/tensor/evaluate.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Leaf values of a row, unit steps: element i of leaf I lies at row[I] + i, a splat leaf at row[I].
template <int Leaves>
struct UnitRow {
  const void* row[Leaves];
  index_t i;

  template <int I, class T, bool Splat, class V>
  LPO_ALWAYS_INLINE V load() const {
    const T* p = static_cast<const T*>(row[I]);
    if constexpr (Splat)
      return broadcast_lanes<V>(static_cast<typename LaneTraits<V>::scalar>(static_cast<compute_t<T>>(*p)));
    else
      return load_lanes<V>(p + i);
  }
};

/// Leaf values of a row with any step; scalars only.
template <int Leaves>
struct StridedRow {
  const void* row[Leaves];
  index_t step[Leaves];
  index_t i;

  template <int I, class T, bool Splat, class V>
  LPO_ALWAYS_INLINE V load() const {
    return load_lanes<V>(static_cast<const T*>(row[I]) + i * step[I]);
  }
};

/// Leaf gradients of a row, unit steps. A summed leaf (one that is broadcast) goes to a float/double buffer `sum`; the
/// splat ones among them collect lanes first. Gradient pointers alias when a leaf occurs twice, so nothing is restrict.
template <int Leaves, class V, class Sum>
struct UnitGradients {
  void* row[Leaves];
  Sum* sum[Leaves];
  bool accumulate[Leaves];
  V lanes[Leaves];
  Sum tail[Leaves];
  index_t i;

  template <int I, class T, bool Splat, class W>
  LPO_ALWAYS_INLINE void add(W gradient) {
    if constexpr (Splat) {
      if constexpr (std::is_same_v<W, V>)
        lanes[I] += gradient;
      else
        tail[I] += static_cast<Sum>(gradient);
    } else if (sum[I] != nullptr) {
      store_lanes(sum[I] + i, static_cast<W>(load_lanes<W>(sum[I] + i) + gradient));
    } else if (row[I] != nullptr) {
      T* p = static_cast<T*>(row[I]) + i;
      if (accumulate[I]) gradient += load_lanes<W>(p);
      store_lanes(p, gradient);
    }
  }
};

template <int Leaves, class Sum>
struct StridedGradients {
  void* row[Leaves];
  Sum* sum[Leaves];
  index_t step[Leaves];
  index_t sum_step[Leaves];
  bool accumulate[Leaves];
  index_t i;

  template <int I, class T, bool Splat, class W>
  LPO_ALWAYS_INLINE void add(W gradient) {
    if (sum[I] != nullptr) {
      sum[I][i * sum_step[I]] += static_cast<Sum>(gradient);
    } else if (row[I] != nullptr) {
      T* p = static_cast<T*>(row[I]) + i * step[I];
      if (accumulate[I]) gradient += load_lanes<W>(p);
      store_lanes(p, gradient);
    }
  }
};

/// Storage size of each leaf.
template <class Tree>
void leaf_sizes(index_t* bytes) {
  for_each_leaf<Tree>([&]<class T, bool Splat>(int i) { bytes[i] = static_cast<index_t>(sizeof(T)); });
}

/// How loops over one number at a time are run. A backend that computes in packs has one more of these, whose `run`
/// chooses the pack (and the instruction set that the body is compiled for).
template <class Number>
struct OneLane {
  template <class Body>
  static void run(Body&& body) {
    body.template operator()<Number>();
  }
};

/// Rows [first, last) restricted to inner elements [from, to), forward. V is the pack; Number handles tails and
/// strides.
template <class V, class Number, class Tree, class T>
LPO_ALWAYS_INLINE void forward_rows(const IterationSpace& space, const Tree& tree, T* out, const void* const* data,
                                    index_t first, index_t last, index_t from, index_t to) {
  constexpr int leaves = std::max(1, Tree::leaves);
  constexpr int width = LaneTraits<V>::width;
  index_t bytes[leaves] = {};
  leaf_sizes<Tree>(bytes);
  OuterCursor cursor(space, first);
  for (index_t r = first; r < last; ++r, cursor.next()) {
    T* y = out + cursor.offset[0];
    const auto place = [&](auto& row) __attribute__((always_inline)) {
      for (int k = 0; k < Tree::leaves; ++k)
        row.row[k] = static_cast<const std::byte*>(data[k]) + cursor.offset[k + 1] * bytes[k];
    };
    if (space.unit_inner) {
      UnitRow<leaves> row{};
      place(row);
      row.i = from;
      if constexpr (width > 1) {
        for (; row.i + width <= to; row.i += width) {
          typename Tree::template State<V> state;
          store_lanes(y + row.i, tree.template forward<0, V>(row, state));
        }
      }
      for (; row.i < to; ++row.i) {
        typename Tree::template State<Number> state;
        store_lanes(y + row.i, tree.template forward<0, Number>(row, state));
      }
    } else {
      StridedRow<leaves> row{};
      place(row);
      for (int k = 0; k < Tree::leaves; ++k) row.step[k] = space.stride[k + 1][space.rank - 1];
      const index_t step = space.stride[0][space.rank - 1];
      for (row.i = from; row.i < to; ++row.i) {
        typename Tree::template State<Number> state;
        store_lanes(y + row.i * step, tree.template forward<0, Number>(row, state));
      }
    }
  }
}

/// Where a broadcast leaf's gradient is summed: dense over the axes the leaf really has.
struct SumLayout {
  bool used = false;
  index_t size = 1;
  index_t stride[max_rank] = {};
};

inline SumLayout sum_layout(const IterationSpace& space, int operand) {
  SumLayout layout;
  layout.used = true;
  for (int axis = space.rank - 1; axis >= 0; --axis) {
    if (space.stride[operand][axis] == 0) continue;
    layout.stride[axis] = layout.size;
    layout.size *= space.extent[axis];
  }
  return layout;
}

/// The backward twin of forward_rows. `sums[k]` is this chunk's buffer for a broadcast leaf, or null.
template <class V, class Number, class Sum, class Tree, class T>
LPO_ALWAYS_INLINE void backward_rows(const IterationSpace& space, const Tree& tree, const T* out_gradient,
                                     const void* const* data, void* const* gradients, const bool* accumulate,
                                     Sum* const* sums, const SumLayout* layouts, index_t first, index_t last,
                                     index_t from, index_t to) {
  constexpr int leaves = std::max(1, Tree::leaves);
  constexpr int width = LaneTraits<V>::width;
  index_t bytes[leaves] = {};
  leaf_sizes<Tree>(bytes);
  OuterCursor cursor(space, first);
  const int inner = space.rank - 1;
  for (index_t r = first; r < last; ++r, cursor.next()) {
    const T* dy = out_gradient + cursor.offset[0];
    index_t sum_offset[leaves] = {};
    index_t rest = r;
    for (int axis = inner - 1; axis >= 0; --axis) {
      const index_t at = rest % space.extent[axis];
      rest /= space.extent[axis];
      for (int k = 0; k < Tree::leaves; ++k) sum_offset[k] += at * layouts[k].stride[axis];
    }
    const auto place = [&](auto& row, auto& gradient) __attribute__((always_inline)) {
      for (int k = 0; k < Tree::leaves; ++k) {
        const index_t offset = cursor.offset[k + 1] * bytes[k];
        row.row[k] = static_cast<const std::byte*>(data[k]) + offset;
        gradient.row[k] = gradients[k] == nullptr ? nullptr : static_cast<std::byte*>(gradients[k]) + offset;
        gradient.sum[k] = sums[k] == nullptr ? nullptr : sums[k] + sum_offset[k];
        gradient.accumulate[k] = accumulate[k];
      }
    };
    if (space.unit_inner) {
      UnitRow<leaves> row{};
      UnitGradients<leaves, V, Sum> gradient{};
      place(row, gradient);
      index_t i = from;
      if constexpr (width > 1) {
        for (; i + width <= to; i += width) {
          row.i = gradient.i = i;
          typename Tree::template State<V> state;
          tree.template forward<0, V>(row, state);
          tree.template backward<0, V>(state, load_lanes<V>(dy + i), gradient);
        }
      }
      for (; i < to; ++i) {
        row.i = gradient.i = i;
        typename Tree::template State<Number> state;
        tree.template forward<0, Number>(row, state);
        tree.template backward<0, Number>(state, load_lanes<Number>(dy + i), gradient);
      }
      for_each_leaf<Tree>([&]<class L, bool Splat>(int k) __attribute__((always_inline)) {
        if constexpr (Splat) {
          if (gradient.sum[k] != nullptr)
            *gradient.sum[k] += static_cast<Sum>(sum_lanes(gradient.lanes[k])) + gradient.tail[k];
        }
      });
    } else {
      StridedRow<leaves> row{};
      StridedGradients<leaves, Sum> gradient{};
      place(row, gradient);
      for (int k = 0; k < Tree::leaves; ++k) {
        row.step[k] = gradient.step[k] = space.stride[k + 1][inner];
        gradient.sum_step[k] = layouts[k].stride[inner];
      }
      const index_t step = space.stride[0][inner];
      for (index_t i = from; i < to; ++i) {
        row.i = gradient.i = i;
        typename Tree::template State<Number> state;
        tree.template forward<0, Number>(row, state);
        tree.template backward<0, Number>(state, load_lanes<Number>(dy + i * step), gradient);
      }
    }
  }
}

/// How a statement is cut: `units` pieces, each some rows or a part of one long row. Depends on extents only.
struct Cut {
  static constexpr index_t most_lanes = 16;  // of any pack: parts begin on whole ones
  index_t units = 1, rows_per_unit = 0, parts = 1, part = 0;

  Cut(const IterationSpace& space, index_t grain) {
    const index_t rows = space.rows(), inner = space.inner();
    if (inner > 2 * grain) {
      parts = (inner + grain - 1) / grain;
      part = (inner + parts - 1) / parts / most_lanes * most_lanes + most_lanes;
      parts = (inner + part - 1) / part;
      rows_per_unit = 1;
      units = rows * parts;
    } else {
      rows_per_unit = std::max<index_t>(1, grain / std::max<index_t>(1, inner));
      units = (rows + rows_per_unit - 1) / rows_per_unit;
      part = inner;
    }
  }

  /// Calls `body(first_row, last_row, from, to)` for unit `u`.
  template <class Body>
  void visit(const IterationSpace& space, index_t u, Body&& body) const {
    if (parts > 1) {
      const index_t r = u / parts, from = u % parts * part;
      body(r, r + 1, from, std::min(space.inner(), from + part));
    } else {
      body(u * rows_per_unit, std::min(space.rows(), (u + 1) * rows_per_unit), index_t{0}, space.inner());
    }
  }
};

/// Forward over a whole space on a host, threaded when there is an executor. Lanes::run gives the loops their pack.
template <class Lanes, class Number, class Tree, class T>
void host_forward(Executor* executor, const IterationSpace& space, const Tree& tree, T* out, const void* const* data) {
  if (space.size() == 0) return;
  const Cut cut(space, 16384);
  const auto run = [&](index_t begin, index_t end) {
    for (index_t u = begin; u < end; ++u)
      cut.visit(space, u, [&](index_t first, index_t last, index_t from, index_t to) {
        Lanes::run([&]<class V>() __attribute__((always_inline)) {
          forward_rows<V, Number>(space, tree, out, data, first, last, from, to);
        });
      });
  };
  if (executor != nullptr)
    executor->parallel_for(cut.units, 1, run);
  else
    run(0, cut.units);
}

/// Backward over a whole space on a host. Broadcast leaves are summed per chunk and added up in chunk order, so the
/// bits do not depend on the number of threads. The sums live in `workspace` while this runs.
template <class Lanes, class Number, class Sum, class Tree, class T>
void host_backward(Executor* executor, Arena& workspace, const IterationSpace& space, const Tree& tree,
                   const T* out_gradient, const void* const* data, void* const* gradients, const bool* accumulate) {
  constexpr int leaves = std::max(1, Tree::leaves);
  SumLayout layouts[leaves];
  bool any_sum = false;
  index_t sum_size = 0, sum_begin[leaves] = {}, bytes[leaves] = {};
  leaf_sizes<Tree>(bytes);
  for_each_leaf<Tree>([&]<class L, bool Splat>(int k) {
    if (gradients[k] == nullptr || !space.reduced(k + 1)) return;
    layouts[k] = sum_layout(space, k + 1);
    sum_begin[k] = sum_size;
    sum_size += (layouts[k].size + Cut::most_lanes) / Cut::most_lanes * Cut::most_lanes;
    any_sum = true;
  });
  const Cut cut(space, 16384);
  constexpr index_t max_chunks = 8;
  const index_t units = space.size() == 0 ? 0 : cut.units;
  const index_t per_chunk = std::max<index_t>(1, any_sum ? (units + max_chunks - 1) / max_chunks : 1);
  const index_t chunks = (units + per_chunk - 1) / per_chunk;
  for (int a = 0; a < Tree::leaves && space.size() > 0; ++a)
    for (int b = a + 1; b < Tree::leaves; ++b)
      if (gradients[a] != nullptr && gradients[b] != nullptr && !layouts[a].used && !layouts[b].used &&
          gradients_cross(space, a, gradients[a], bytes[a], b, gradients[b], bytes[b]))
        executor = nullptr;
  const auto mark = workspace.mark();
  const std::size_t buffer_size = any_sum ? static_cast<std::size_t>(chunks * sum_size) : 0;
  auto* buffer = reinterpret_cast<Sum*>(workspace.allocate(buffer_size * sizeof(Sum)));
  std::fill_n(buffer, buffer_size, Sum{});
  const auto run = [&](index_t begin, index_t end) {
    for (index_t chunk = begin; chunk < end; ++chunk) {
      Sum* sums[leaves] = {};
      for (int k = 0; k < Tree::leaves; ++k)
        if (layouts[k].used) sums[k] = buffer + chunk * sum_size + sum_begin[k];
      void* plain[leaves] = {};
      for (int k = 0; k < Tree::leaves; ++k) plain[k] = layouts[k].used ? nullptr : gradients[k];
      for (index_t u = chunk * per_chunk; u < std::min(units, (chunk + 1) * per_chunk); ++u)
        cut.visit(space, u, [&](index_t first, index_t last, index_t from, index_t to) {
          Lanes::run([&]<class V>() __attribute__((always_inline)) {
            backward_rows<V, Number, Sum>(space, tree, out_gradient, data, plain, accumulate, sums, layouts, first,
                                          last, from, to);
          });
        });
    }
  };
  if (executor != nullptr)
    executor->parallel_for(chunks, 1, run);
  else
    run(0, chunks);
  for_each_leaf<Tree>([&]<class L, bool Splat>(int k) {
    if (!layouts[k].used) return;
    IterationSpace own = space;  // the axes that the leaf has; the others collapse to one element
    for (int axis = 0; axis < own.rank; ++axis)
      if (space.stride[k + 1][axis] == 0) own.extent[axis] = 1;
    if (space.size() == 0) {
      for (int axis = 0; axis < own.rank; ++axis)
        if (own.extent[axis] == 0) return;
    }
    own.operands = k + 2;
    const index_t rows = own.rows();
    OuterCursor cursor(own, 0);
    for (index_t r = 0; r < rows; ++r, cursor.next()) {
      for (index_t i = 0; i < own.inner(); ++i) {
        const index_t at = r * own.inner() + i;
        Sum total = 0;
        for (index_t chunk = 0; chunk < chunks; ++chunk) total += buffer[chunk * sum_size + sum_begin[k] + at];
        L* p = static_cast<L*>(gradients[k]) + cursor.offset[k + 1] + i * own.stride[k + 1][own.rank - 1];
        if (accumulate[k]) total += static_cast<Sum>(static_cast<compute_t<L>>(*p));
        *p = static_cast<L>(static_cast<compute_t<L>>(total));
      }
    }
  });
  workspace.rewind(mark);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
