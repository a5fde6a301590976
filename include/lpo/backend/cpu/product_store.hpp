// SPDX-License-Identifier: MIT
// Where the rows of operands and results lie, and how finished sums become a result: scaled, added, converted, gated.
#pragma once

#include <algorithm>
#include <type_traits>

#include <lpo/backend/cpu/lane_dispatch.hpp>
#include <lpo/base/device.hpp>
#include <lpo/tensor/tree.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Offsets of rows that enumerate (image, line, column).
struct RowMap {
  index_t columns = 1, lines = 1;
  index_t column_step = 0, line_step = 0, image_step = 0;
};

/// `count` rows at a constant distance.
inline RowMap even_rows(index_t count, index_t step) { return {std::max<index_t>(count, 1), 1, step, 0, 0}; }

/// Walks the rows of a map without dividing at each.
class RowCursor {
 public:
  RowCursor(const RowMap& map, index_t row)
      : map_(map), column_(row % map.columns), line_(row / map.columns % map.lines) {
    offset_ = column_ * map.column_step + line_ * map.line_step + row / map.columns / map.lines * map.image_step;
  }
  index_t offset() const { return offset_; }
  void next() {
    offset_ += map_.column_step;
    if (++column_ < map_.columns) return;
    column_ = 0;
    offset_ += map_.line_step - map_.columns * map_.column_step;
    if (++line_ < map_.lines) return;
    line_ = 0;
    offset_ += map_.image_step - map_.lines * map_.line_step;
  }

 private:
  const RowMap& map_;
  index_t column_, line_, offset_;
};

/// Where and how a product is stored: c[rows(r) + j * column_step] = alpha * out + beta * c + bias.
template <class T>
struct TileOutput {
  T* c = nullptr;
  RowMap rows;
  index_t column_step = 1;
  float alpha = 1.0f, beta = 0.0f;
  const T* bias = nullptr;   ///< by column, or
  bool bias_by_row = false;  ///< by row
  index_t batch_c = 0;
  T* gated = nullptr;  ///< see store_gated()
};

/// store_tile() where C is written transposed, down its rows, which are our columns.
template <class S, class T>
void store_columns(const TileOutput<T>& out, T* c, const S* sums, index_t sums_step, const index_t* offset, int count,
                   index_t row, index_t column, index_t width) {
  const bool by_row = out.bias != nullptr && out.bias_by_row, by_column = out.bias != nullptr && !out.bias_by_row;
  with_lanes<S>([=, bias = out.bias, step = out.column_step, alpha = static_cast<S>(out.alpha),
                 beta = static_cast<S>(out.beta)]<class V>() __attribute__((always_inline)) {
    constexpr int lanes = static_cast<int>(LaneTraits<V>::width);
    for (int r = 0; r < count;) {
      const bool square = r + lanes <= count && offset[r + lanes - 1] == offset[r] + lanes - 1;
      const int rows = square ? lanes : 1;
      const S* from = sums + r * sums_step;
      index_t j = 0;
      if (square) {
        const V add = by_row ? load_all<V>(bias + row + r) : V{};
        for (; j + lanes <= width; j += lanes) {
          V lines[lanes];
          unroll<lanes>([&](auto i) __attribute__((always_inline)) {
            lines[i] = load_all<V>(from + i * sums_step + j);
          });
          transpose_lanes(lines);
          unroll<lanes>([&](auto i) __attribute__((always_inline)) {
            T* to = c + (column + j + i) * step + offset[r];
            V value = lines[i] * alpha + add;
            if (beta != S{}) value += load_all<V>(to) * beta;
            if (by_column) value += broadcast_lanes<V>(load_lanes<S>(bias + column + j + i));
            store_lanes(to, value);
          });
        }
      }
      for (; j < width; ++j)
        for (int i = 0; i < rows; ++i) {
          T* to = c + (column + j) * step + offset[r + i];
          S value = from[i * sums_step + j] * alpha + (by_row ? load_lanes<S>(bias + row + r + i) : S{});
          if (beta != S{}) value += load_lanes<S>(to) * beta;
          if (by_column) value += load_lanes<S>(bias + column + j);
          store_lanes(to, value);
        }
      r += rows;
    }
  });
}

/// Stores `width` finished sums of `count` rows, whose offsets in C are `offset`; `column` and `row` index the bias.
template <class S, class T>
void store_tile(const TileOutput<T>& out, T* c, const S* sums, index_t sums_step, const index_t* offset, int count,
                index_t row, index_t column, index_t width) {
  if (out.column_step != 1) return store_columns(out, c, sums, sums_step, offset, count, row, column, width);
  const bool by_row = out.bias != nullptr && out.bias_by_row, by_column = out.bias != nullptr && !out.bias_by_row;
  with_lanes<S>([=, bias = out.bias, alpha = static_cast<S>(out.alpha), beta = static_cast<S>(out.beta)]<class V>()
                    __attribute__((always_inline)) {
    for (int r = 0; r < count; ++r) {
      const S* from = sums + r * sums_step;
      T* to = c + offset[r] + column;
      const S row_bias = by_row ? load_lanes<S>(bias + row + r) : S{};
      for_lanes<V>(0, width, [=](index_t j, auto lanes) __attribute__((always_inline)) {
        V value = lanes.load(from + j) * alpha;
        if (beta != S{}) value += lanes.load(to + j) * beta;
        if (by_row) value += broadcast_lanes<V>(row_bias);
        if (by_column) value += lanes.load(bias + column + j);
        lanes.store(to + j, value);
      });
    }
  });
}

/// The end of a product with a gate (kernel/gated_product.hpp), whose panels of `columns`, whole registers, alternate
/// between values and gates: from sums of `count` rows in panels [panel, panel_end), both even, `out.gated` [m, n / 2]
/// and, if not null, out.c [m, n].
template <class T>
void store_gated(const TileOutput<T>& out, const float* sums, index_t sums_step, int count, index_t columns, index_t n,
                 index_t row, index_t panel, index_t panel_end) {
  with_lanes<float>([=, c = out.c, bias = out.bias, gated = out.gated, hidden = n / 2]<class V>()
                        __attribute__((always_inline)) {
    constexpr index_t lanes = LaneTraits<V>::width;
    T both[2 * lanes];
    for (int r = 0; r < count; ++r)
      for (index_t at = panel; at < panel_end; at += 2)
        for (index_t j = 0; j < columns; j += lanes) {
          const float* from = sums + r * sums_step + (at - panel) * columns + j;
          const index_t column = at / 2 * columns + j;
          T* const value = c == nullptr ? both : c + (row + r) * n + column;
          T* const gate = c == nullptr ? both + lanes : c + (row + r) * n + hidden + column;
          V value_sum = load_all<V>(from), gate_sum = load_all<V>(from + columns);
          if (bias != nullptr) {
            value_sum += load_all<V>(bias + column);
            gate_sum += load_all<V>(bias + hidden + column);
          }
          store_lanes(value, value_sum);
          store_lanes(gate, gate_sum);
          store_lanes(gated + (row + r) * hidden + column,
                      load_all<V>(value) * op::Gelu::value(load_all<V>(gate)));
        }
  });
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
