// SPDX-License-Identifier: MIT
// Where the rows of operands and results lie, and how finished sums become a result: scaled, added, converted, gated.
#pragma once

#include <algorithm>
#include <type_traits>

#include <lpo/backend/cpu/lanes.hpp>
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
  const S alpha = static_cast<S>(out.alpha), beta = static_cast<S>(out.beta);
  const bool by_row = out.bias != nullptr && out.bias_by_row, by_column = out.bias != nullptr && !out.bias_by_row;
  index_t j = 0;
  if constexpr (std::is_same_v<S, float>) {
    if (count == pack_width && offset[count - 1] == offset[0] + count - 1) {
      const Pack add = by_row ? load_all<Pack>(out.bias + row) : Pack{};
      for (; j + pack_width <= width; j += pack_width) {
        Pack lines[pack_width];
        for (int r = 0; r < pack_width; ++r) lines[r] = load_pack(sums + r * sums_step + j);
        transpose_lanes(lines);
        for (int i = 0; i < pack_width; ++i) {
          T* to = c + (column + j + i) * out.column_step + offset[0];
          Pack value = lines[i] * alpha + add;
          if (out.beta != 0.0f) value += load_all<Pack>(to) * beta;
          if (by_column) value += load_lanes<S>(out.bias + column + j + i);
          store_lanes(to, value);
        }
      }
    }
  }
  for (; j < width; ++j) {
    T* to = c + (column + j) * out.column_step;
    for (int r = 0; r < count; ++r) {
      S value = sums[r * sums_step + j] * alpha + (by_row ? load_lanes<S>(out.bias + row + r) : S{});
      if (out.beta != 0.0f) value += load_lanes<S>(to + offset[r]) * beta;
      if (by_column) value += load_lanes<S>(out.bias + column + j);
      store_lanes(to + offset[r], value);
    }
  }
}

/// Stores `width` finished sums of `count` rows, whose offsets in C are `offset`; `column` and `row` index the bias.
template <class S, class T>
void store_tile(const TileOutput<T>& out, T* c, const S* sums, index_t sums_step, const index_t* offset, int count,
                index_t row, index_t column, index_t width) {
  if (out.column_step != 1) return store_columns(out, c, sums, sums_step, offset, count, row, column, width);
  const S alpha = static_cast<S>(out.alpha), beta = static_cast<S>(out.beta);
  for (int r = 0; r < count; ++r) {
    const S* from = sums + r * sums_step;
    T* to = c + offset[r] + column;
    const bool by_row = out.bias != nullptr && out.bias_by_row;
    const S row_bias = by_row ? load_lanes<S>(out.bias + row + r) : S{};
    auto store = [&]<class V>(index_t j) {
      V value = load_lanes<V>(from + j) * alpha;
      if (out.beta != 0.0f) value += load_lanes<V>(to + j) * beta;
      if (out.bias != nullptr)
        value += out.bias_by_row ? broadcast_lanes<V>(row_bias) : load_lanes<V>(out.bias + column + j);
      store_lanes(to + j, value);
    };
    index_t j = 0;
    if constexpr (std::is_same_v<S, float>)
      for (; j + pack_width <= width; j += pack_width) store.template operator()<Pack>(j);
    for (; j < width; ++j) store.template operator()<S>(j);
  }
}

/// The end of a product with a gate (kernel/gated_product.hpp), whose panels alternate between values and gates: from
/// sums of one row in panels [panel, panel_end), both even, `out.gated` [m, n / 2] and, if not null, out.c [m, n].
template <class T>
void store_gated(const TileOutput<T>& out, const float* sums, index_t columns, index_t n, index_t row, index_t panel,
                 index_t panel_end) {
  const index_t hidden = n / 2;
  T both[2 * pack_width];
  for (; panel < panel_end; panel += 2, sums += 2 * columns)
    for (index_t j = 0; j < columns; j += pack_width) {
      const index_t column = panel / 2 * columns + j;
      T* const value = out.c == nullptr ? both : out.c + row * n + column;
      T* const gate = out.c == nullptr ? both + pack_width : out.c + row * n + hidden + column;
      Pack value_sum = load_pack(sums + j), gate_sum = load_pack(sums + columns + j);
      if (out.bias != nullptr) {
        value_sum += load_all<Pack>(out.bias + column);
        gate_sum += load_all<Pack>(out.bias + hidden + column);
      }
      store_lanes(value, value_sum);
      store_lanes(gate, gate_sum);
      store_lanes(out.gated + row * hidden + column, load_all<Pack>(value) * op::Gelu::value(load_all<Pack>(gate)));
    }
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
