// SPDX-License-Identifier: MIT
// Attention of CUDA devices for every storage type, width and stride: tiles in shared memory, no tensor cores.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/attention.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Rows of one tensor [batch, length, heads, width] with a row stride; null where a kernel does without it.
template <class T>
struct HeadRows {
  T* data = nullptr;
  index_t row_stride = 0, length = 0;

  /// The first row of a head.
  __device__ T* head(index_t batch, index_t head, index_t width) const {
    return data + batch * length * row_stride + head * width;
  }
};

/// What backward needs of a query: p_ij = exp(score_ij - level), ds_ij = p_ij (dp_ij - delta), delta = dout . out.
template <class Number>
struct alignas(2 * sizeof(Number)) QueryTerms {
  Number level, delta;
};

/// terms[pair * terms_stride + query] from log_sum_exp, out and dout; `level_scale` turns the levels into another base
/// of exponentials. Block y is a batch; eight threads share a row and read Count numbers at a time. Memory-bound: reads
/// out and dout.
template <int Count, class T>
__global__ void __launch_bounds__(256)
    attention_terms_kernel(kernel::AttentionShape shape, const T* out, const T* dout, const compute_t<T>* log_sum_exp,
                           float level_scale, QueryTerms<compute_t<T>>* terms, index_t terms_stride) {
  using Number = compute_t<T>;
  let_next_kernel_start();
  const unsigned heads = static_cast<unsigned>(shape.heads), row = blockIdx.x * 32 + threadIdx.x / 8;
  const unsigned query = row / heads, head = row % heads;  // in the order of memory
  const bool there = query < shape.queries;
  Number sum{};
  if (there) {
    const index_t at = (blockIdx.y * shape.queries + query) * shape.out_row + head * shape.width;
    for (index_t d = threadIdx.x % 8 * Count; d < shape.width; d += 8 * Count) {
      Number a[Count], b[Count];
      load_numbers<Count>(out + at + d, a);
      load_numbers<Count>(dout + at + d, b);
#pragma unroll
      for (int i = 0; i < Count; ++i) sum += a[i] * b[i];
    }
  }
#pragma unroll
  for (int lane = 4; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (threadIdx.x % 8 != 0 || !there) return;
  const index_t pair = blockIdx.y * shape.heads + head;
  terms[pair * terms_stride + query] = {log_sum_exp[pair * shape.queries + query] * static_cast<Number>(level_scale),
                                        sum};
}

/// A block of 16 x 16 threads holds a Side x Side tile of scores; a thread has Rows x Rows neighbouring ones of it.
template <class T>
struct PlainTile {
  using Number = compute_t<T>;
  static constexpr int Rows = sizeof(Number) == 8 ? 2 : 4;  // 16-byte reads of shared memory
  static constexpr int Side = 16 * Rows;
  static constexpr int Depth = 16;  ///< of the width that is in shared memory at a time
  static constexpr int Pitch = Side + Rows;

  Number left[Depth][Pitch], right[Depth][Pitch];

  /// tile[i][j] = left_row_i . right_row_j; rows beyond the counts count as zero.
  __device__ void products(const T* left_rows, index_t left_stride, index_t left_count, const T* right_rows,
                           index_t right_stride, index_t right_count, index_t width, Number (&tile)[Rows][Rows]) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < Rows; ++i)
#pragma unroll
      for (int j = 0; j < Rows; ++j) tile[i][j] = Number{};
    for (index_t begin = 0; begin < width; begin += Depth) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < Rows; ++i) {
        const int row = y + 16 * i;
        const bool deep = begin + x < width;
        left[x][row] = deep && row < left_count ? load_number(left_rows + row * left_stride + begin + x) : Number{};
        right[x][row] = deep && row < right_count ? load_number(right_rows + row * right_stride + begin + x) : Number{};
      }
      __syncthreads();
#pragma unroll
      for (int depth = 0; depth < Depth; ++depth) {
        Number a[Rows], b[Rows];
        load_numbers<Rows>(&left[depth][y * Rows], a);
        load_numbers<Rows>(&right[depth][x * Rows], b);
#pragma unroll
        for (int i = 0; i < Rows; ++i)
#pragma unroll
          for (int j = 0; j < Rows; ++j) tile[i][j] += a[i] * b[j];
      }
    }
  }
};

/// A tile of weights, and their product with rows of another matrix: a thread sums Rows rows of every 16th column.
template <class T, int Columns>
struct PlainWeights {
  using Number = compute_t<T>;
  using Tile = PlainTile<T>;
  static constexpr int Rows = Tile::Rows, Side = Tile::Side, Depth = Tile::Depth;

  Number weight[Side][Tile::Pitch];  ///< [column of the tile][row of the tile]
  Number value[Depth][16 * Columns];

  __device__ void put(const Number (&tile)[Rows][Rows]) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < Rows; ++i)
#pragma unroll
      for (int j = 0; j < Rows; ++j) weight[x * Rows + j][y * Rows + i] = tile[i][j];
  }

  /// sum[i][c] += sum_j weight[i][j] values[j][x + 16 c], for `count` rows of values and `columns` of their columns.
  __device__ void accumulate(const T* values, index_t stride, index_t count, index_t columns,
                             Number (&sum)[Rows][Columns]) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int begin = 0; begin < Side && begin < count; begin += Depth) {
      __syncthreads();
      const bool there = begin + y < count;
#pragma unroll
      for (int c = 0; c < Columns; ++c)
        value[y][x + 16 * c] =
            there && x + 16 * c < columns ? load_number(values + (begin + y) * stride + x + 16 * c) : Number{};
      __syncthreads();
#pragma unroll 4
      for (int j = 0; j < Depth; ++j) {
        Number a[Rows];
        load_numbers<Rows>(&weight[begin + j][y * Rows], a);
#pragma unroll
        for (int c = 0; c < Columns; ++c) {
          const Number b = value[j][x + 16 * c];
#pragma unroll
          for (int i = 0; i < Rows; ++i) sum[i][c] += a[i] * b;
        }
      }
    }
  }
};

__device__ __forceinline__ float natural_exp(float value) { return expf(value); }
__device__ __forceinline__ double natural_exp(double value) { return exp(value); }
__device__ __forceinline__ float natural_log(float value) { return logf(value); }
__device__ __forceinline__ double natural_log(double value) { return log(value); }

/// Streaming softmax: per tile of keys, m' = max(m, max_j s_j), l = l exp(m - m') + sum_j exp(s_j - m'), and the same
/// for the sums of values; out = sums / l. Block x owns Side queries of one (batch, head); blocks y share the columns
/// of `out`, 16 * Columns each, and each computes the scores again: wide heads are rare.
template <class T, int Columns>
__global__ void __launch_bounds__(256)
    attention_forward_tiled_kernel(kernel::AttentionShape shape, HeadRows<const T> q, HeadRows<const T> k,
                                   HeadRows<const T> v, HeadRows<T> out, compute_t<T>* log_sum_exp) {
  using Number = compute_t<T>;
  using Tile = PlainTile<T>;
  constexpr int Rows = Tile::Rows, Side = Tile::Side;
  __shared__ Tile scores;
  __shared__ PlainWeights<T, Columns> weights;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const index_t tiles = (shape.queries + Side - 1) / Side;
  const index_t pair = blockIdx.x / tiles, first = blockIdx.x % tiles * Side, width = shape.width;
  const index_t batch = pair / shape.heads, head = pair % shape.heads;
  const index_t column = static_cast<index_t>(blockIdx.y) * 16 * Columns;
  const T* const queries = q.head(batch, head, width) + first * q.row_stride;
  const T* const keys = k.head(batch, head, width);
  const T* const values = v.head(batch, head, width) + column;
  const Number scale = static_cast<Number>(shape.scale), lowest = -static_cast<Number>(INFINITY);

  Number highest[Rows], sum[Rows], total[Rows][Columns];
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    highest[i] = lowest;
    sum[i] = Number{};
#pragma unroll
    for (int c = 0; c < Columns; ++c) total[i][c] = Number{};
  }
  const index_t end = shape.causal && first + Side < shape.keys ? first + Side : shape.keys;
  for (index_t begin = 0; begin < end; begin += Side) {
    Number tile[Rows][Rows];
    scores.products(queries, q.row_stride, shape.queries - first, keys + begin * k.row_stride, k.row_stride,
                    shape.keys - begin, width, tile);
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
      Number top = highest[i];
#pragma unroll
      for (int j = 0; j < Rows; ++j) {
        const index_t key = begin + x * Rows + j;
        const bool hidden = key >= shape.keys || (shape.causal && key > first + y * Rows + i);
        tile[i][j] = hidden ? lowest : tile[i][j] * scale;
        top = top < tile[i][j] ? tile[i][j] : top;
      }
#pragma unroll
      for (int lane = 8; lane > 0; lane /= 2) {  // the 16 threads of a row are half a warp
        const Number other = __shfl_xor_sync(0xffffffffu, top, lane);
        top = top < other ? other : top;
      }
      const Number shrink = natural_exp(highest[i] - top);  // the first key is visible: top is finite
      highest[i] = top;
      sum[i] *= shrink;
#pragma unroll
      for (int c = 0; c < Columns; ++c) total[i][c] *= shrink;
#pragma unroll
      for (int j = 0; j < Rows; ++j) {
        tile[i][j] = natural_exp(tile[i][j] - top);
        sum[i] += tile[i][j];
      }
    }
    weights.put(tile);
    weights.accumulate(values + begin * v.row_stride, v.row_stride, shape.keys - begin, width - column, total);
  }

#pragma unroll
  for (int i = 0; i < Rows; ++i) {
#pragma unroll
    for (int lane = 8; lane > 0; lane /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], lane);
    const index_t query = first + y * Rows + i;
    if (query >= shape.queries) continue;
    T* const row = out.head(batch, head, width) + query * out.row_stride + column;
#pragma unroll
    for (int c = 0; c < Columns; ++c)
      if (column + x + 16 * c < width) store_number(row + x + 16 * c, total[i][c] / sum[i]);
    if (log_sum_exp != nullptr && x == 0 && blockIdx.y == 0)
      log_sum_exp[pair * shape.queries + query] = highest[i] + natural_log(sum[i]);
  }
}

/// The three gradients are one formula: target_i = sum_j w_ij values_j.
///            rows     w                  values
///   dq:      queries  scale ds_ij        k
///   dk:      keys     scale ds_ji        q
///   dv:      keys     p_ji               dout
/// with scores = left right^T and dp = left_slope right_slope^T.
template <class T>
struct PlainGradient {
  kernel::AttentionShape shape;
  HeadRows<const T> left, right, left_slope, right_slope;  ///< no slopes: the weights are the probabilities
  HeadRows<const T> values;
  HeadRows<T> target;
  const QueryTerms<compute_t<T>>* terms;
  bool rows_are_keys, accumulate;
};

/// Block x owns Side rows of one (batch, head) and walks the other side; blocks y share the columns of the target.
template <class T, int Columns>
__global__ void __launch_bounds__(256) attention_gradient_tiled_kernel(PlainGradient<T> p) {
  using Number = compute_t<T>;
  using Tile = PlainTile<T>;
  constexpr int Rows = Tile::Rows, Side = Tile::Side;
  __shared__ Tile scores;
  __shared__ PlainWeights<T, Columns> weights;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const index_t length = p.target.length, others = p.right.length, heads = p.shape.heads, width = p.shape.width;
  const index_t tiles = (length + Side - 1) / Side;
  const index_t pair = blockIdx.x / tiles, first = blockIdx.x % tiles * Side;
  const index_t batch = pair / heads, head = pair % heads;
  const index_t column = static_cast<index_t>(blockIdx.y) * 16 * Columns;
  const T* const left = p.left.head(batch, head, width) + first * p.left.row_stride;
  const T* const right = p.right.head(batch, head, width);
  const T* const values = p.values.head(batch, head, width) + column;
  const auto* const terms = p.terms + pair * p.shape.queries;
  const Number scale = static_cast<Number>(p.shape.scale);

  Number total[Rows][Columns];
#pragma unroll
  for (int i = 0; i < Rows; ++i)
#pragma unroll
    for (int c = 0; c < Columns; ++c) total[i][c] = Number{};
  const bool causal = p.shape.causal;
  const index_t from = causal && p.rows_are_keys ? first : 0;
  const index_t end = causal && !p.rows_are_keys && first + Side < others ? first + Side : others;
  for (index_t begin = from; begin < end; begin += Side) {
    Number tile[Rows][Rows], slope[Rows][Rows];
    scores.products(left, p.left.row_stride, length - first, right + begin * p.right.row_stride, p.right.row_stride,
                    others - begin, width, tile);
    if (p.left_slope.data != nullptr)
      scores.products(p.left_slope.head(batch, head, width) + first * p.left_slope.row_stride, p.left_slope.row_stride,
                      length - first, p.right_slope.head(batch, head, width) + begin * p.right_slope.row_stride,
                      p.right_slope.row_stride, others - begin, width, slope);
#pragma unroll
    for (int i = 0; i < Rows; ++i)
#pragma unroll
      for (int j = 0; j < Rows; ++j) {
        const index_t row = first + y * Rows + i, other = begin + x * Rows + j;
        const index_t query = p.rows_are_keys ? other : row, key = p.rows_are_keys ? row : other;
        Number weight{};
        if (query < p.shape.queries && key < p.shape.keys && !(causal && key > query)) {
          weight = natural_exp(tile[i][j] * scale - terms[query].level);
          if (p.left_slope.data != nullptr) weight *= scale * (slope[i][j] - terms[query].delta);
        }
        tile[i][j] = weight;
      }
    weights.put(tile);
    weights.accumulate(values + begin * p.values.row_stride, p.values.row_stride, others - begin, width - column,
                       total);
  }

#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    const index_t row = first + y * Rows + i;
    if (row >= length) continue;
    T* const target = p.target.head(batch, head, width) + row * p.target.row_stride + column;
#pragma unroll
    for (int c = 0; c < Columns; ++c) {
      if (column + x + 16 * c >= width) continue;
      T* const at = target + x + 16 * c;
      store_number(at, p.accumulate ? total[i][c] + load_number(at) : total[i][c]);
    }
  }
}

/// Calls body(constant) with the sixteens of columns that a block takes, and the blocks that share `width` columns.
template <class Body>
void with_plain_columns(index_t width, Body&& body) {
  if (width <= 64)
    body(std::integral_constant<int, 4>{}, 1u);
  else
    body(std::integral_constant<int, 12>{}, blocks_for(width, 192));
}

template <class T>
void attention_forward_plain(Context<Cuda>& context, const kernel::AttentionShape& shape, const T* q, const T* k,
                             const T* v, T* out, compute_t<T>* log_sum_exp) {
  with_plain_columns(shape.width, [&](auto columns, unsigned passes) {
    const unsigned tiles = blocks_for(shape.queries, PlainTile<T>::Side);
    const dim3 grid(static_cast<unsigned>(shape.batch * shape.heads) * tiles, passes);
    context.launch("attention_forward_tiled_kernel", {grid, 256}, attention_forward_tiled_kernel<T, decltype(columns)::value>, shape,
                   HeadRows<const T>{q, shape.q_row, shape.queries}, HeadRows<const T>{k, shape.k_row, shape.keys},
                   HeadRows<const T>{v, shape.v_row, shape.keys}, HeadRows<T>{out, shape.out_row, shape.queries}, log_sum_exp);
  });
}

template <class T>
void attention_gradient_plain(Context<Cuda>& context, const PlainGradient<T>& gradient) {
  if (gradient.target.data == nullptr || gradient.target.length == 0) return;
  with_plain_columns(gradient.shape.width, [&](auto columns, unsigned passes) {
    const unsigned tiles = blocks_for(gradient.target.length, PlainTile<T>::Side);
    const dim3 grid(static_cast<unsigned>(gradient.shape.batch * gradient.shape.heads) * tiles, passes);
    context.launch("attention_gradient_tiled_kernel", {grid, 256}, attention_gradient_tiled_kernel<T, decltype(columns)::value>,
                   gradient);
  });
}

/// `terms` in natural logarithms.
template <class T>
void attention_backward_plain(Context<Cuda>& context, const kernel::AttentionShape& shape, const T* q, const T* k,
                              const T* v, const QueryTerms<compute_t<T>>* terms, const T* dout, T* dq,
                              bool accumulate_q, T* dk, bool accumulate_k, T* dv, bool accumulate_v) {
  const HeadRows<const T> queries{q, shape.q_row, shape.queries}, keys{k, shape.k_row, shape.keys};
  const HeadRows<const T> values{v, shape.v_row, shape.keys}, slopes{dout, shape.out_row, shape.queries};
  attention_gradient_plain<T>(
      context,
      {shape, queries, keys, slopes, values, keys, {dq, shape.q_row, shape.queries}, terms, false, accumulate_q});
  attention_gradient_plain<T>(
      context,
      {shape, keys, queries, values, slopes, queries, {dk, shape.k_row, shape.keys}, terms, true, accumulate_k});
  attention_gradient_plain<T>(
      context, {shape, keys, queries, {}, {}, slopes, {dv, shape.v_row, shape.keys}, terms, true, accumulate_v});
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
