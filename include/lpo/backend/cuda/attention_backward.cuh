// SPDX-License-Identifier: MIT
// Gradient of attention on CUDA devices: the probabilities are computed again, tile by tile, from either side.
#pragma once

#include <lpo/backend/cuda/attention_joint_gradient.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Per head, with c = scale log2(e) and terms (level, delta) of a query in powers of two:
///   p = 2^(c q k^T - level),  dp = dout v^T,  ds = p (dp - delta),
///   dq = scale ds k,  dk = scale ds^T q,  dv = p^T dout
/// One kernel for both sides; a block owns `rows` and walks tiles of `columns`:
///              rows          columns       sums
///   dq          q, dout       k, v          ds k
///   dk, dv      k, v          q, dout       ds^T q, p^T dout
///
/// Launch: block (x, head, batch) = 4 warps of 16 * Tiles rows, and one of several shares of the columns, whose float
/// sums go to `partial` and are added in order by attention_sum_splits_kernel. Memory: rows and two stages of columns
/// in shared memory; scores, weights and sums in registers. Numerics: products of T in float, p and ds rounded to T for
/// their products. No atomics: same bits in every run on the same device. Limits: fits_matrix_units.
template <class T>
struct AttentionGradientArguments {
  kernel::AttentionShape shape;
  HeadRows<const T> rows, row_slopes, columns, column_slopes;
  const QueryTerms<float>* terms;
  HeadRows<T> target, value_target;  ///< dq; or dk and dv, of which one may be null
  bool accumulate, accumulate_values;
  float* partial = nullptr;  ///< [split][dk, dv][pair][key][width]; null: one share, straight to the targets
  index_t share = 0;         ///< columns of a split, a multiple of the tile
  bool after_terms = true;   ///< launched right after the kernel that writes the terms; else that one is done
};

/// Registers decide which left operands are kept in them; the others are read from shared memory again for every chunk.
template <int Width, int Tiles, bool ByKeys>
struct AttentionGradientPlan {
  static constexpr int ColumnTile = Width > 80 ? 32 : 64;  ///< in all, below the 99 KiB that consumer devices have
  static constexpr int Chunk = 16;                         ///< columns in registers
  static constexpr int sums = (ByKeys ? 2 : 1) * Tiles * Width / 2, scores = Tiles * Chunk, operand = Tiles * Width / 4;
  static constexpr bool keep_rows = sums + scores + operand <= 215;
  static constexpr bool keep_slopes = sums + scores + 2 * operand <= 208;
};

template <class T, int Width, int Tiles, bool ByKeys>
struct AttentionGradientWarp {
  using Plan = AttentionGradientPlan<Width, Tiles, ByKeys>;
  static constexpr int Chunk = Plan::Chunk;

  unsigned row[Plan::keep_rows ? Tiles : 1][tile_steps<Width>][4],
      row_slope[Plan::keep_slopes ? Tiles : 1][tile_steps<Width>][4];
  float sum[Tiles][Width / 8][4], value_sum[ByKeys ? Tiles : 1][Width / 8][4];
  QueryTerms<float> terms[Tiles][2];  ///< of the rows, where they are queries

  __device__ __forceinline__ void start(unsigned rows, unsigned slopes) {
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
#pragma unroll
      for (int step = 0; step < tile_steps<Width>; ++step) {
        if constexpr (Plan::keep_rows) load_matrices(row[t][step], rows + rows_first_step<Width>(16 * t, step));
        if constexpr (Plan::keep_slopes)
          load_matrices(row_slope[t][step], slopes + rows_first_step<Width>(16 * t, step));
      }
#pragma unroll
      for (int n = 0; n < Width / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sum[t][n][e] = 0.0f;
          if constexpr (ByKeys) value_sum[t][n][e] = 0.0f;
        }
    }
  }

  /// One tile of columns, the first `count` of them; addresses are this lane's. Masked: column j is hidden from row i
  /// behind `count` or, with causal, where its query comes before its key: ByKeys j < diagonal + i, else j above.
  template <bool Masked>
  __device__ __forceinline__ void step(unsigned rows, unsigned slopes, unsigned column_tile, unsigned slope_tile,
                                       const QueryTerms<float>* column_terms, float scale, int count, bool causal,
                                       int diagonal) {
    const unsigned across = depth_first_offset<Width>(), down = rows_first_offset<Width>();
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int begin = 0; begin < Plan::ColumnTile; begin += Chunk) {
      if (Masked && begin >= count) break;
      float score[Tiles][Chunk / 8][4], slope[Tiles][Chunk / 8][4];
#pragma unroll
      for (int t = 0; t < Tiles; ++t)
#pragma unroll
        for (int n = 0; n < Chunk / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) score[t][n][e] = slope[t][n][e] = 0.0f;
#pragma unroll
      for (int depth = 0; depth < tile_steps<Width>; ++depth) {
        unsigned a[Tiles][4], a_slope[Tiles][4];
#pragma unroll
        for (int t = 0; t < Tiles; ++t) {
          if constexpr (!Plan::keep_rows) load_matrices(a[t], rows + rows_first_step<Width>(16 * t, depth));
          if constexpr (!Plan::keep_slopes) load_matrices(a_slope[t], slopes + rows_first_step<Width>(16 * t, depth));
        }
#pragma unroll
        for (int n = 0; n < Chunk / 16; ++n) {
          unsigned b[4], b_slope[4];
          load_matrices(b, column_tile + across + depth_first_step<Width>(begin + 16 * n, depth));
          load_matrices(b_slope, slope_tile + across + depth_first_step<Width>(begin + 16 * n, depth));
#pragma unroll
          for (int t = 0; t < Tiles; ++t) {
            const auto& left = Plan::keep_rows ? row[Plan::keep_rows ? t : 0][depth] : a[t];
            const auto& left_slope = Plan::keep_slopes ? row_slope[Plan::keep_slopes ? t : 0][depth] : a_slope[t];
            multiply_step<T, Width>(score[t][2 * n], score[t][2 * n + 1], left, b, depth);
            multiply_step<T, Width>(slope[t][2 * n], slope[t][2 * n + 1], left_slope, b_slope, depth);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < Chunk / 8; ++n) {
        const int column = begin + 8 * n + lane % 4 * 2;
        QueryTerms<float> of_column[2];
        if constexpr (ByKeys) {
          const float4 both = *reinterpret_cast<const float4*>(column_terms + column);
          of_column[0] = {both.x, both.y};
          of_column[1] = {both.z, both.w};
        }
#pragma unroll
        for (int t = 0; t < Tiles; ++t)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const QueryTerms<float> term = ByKeys ? of_column[e % 2] : terms[t][e / 2];
            float weight = exp2_approximate(fmaf(score[t][n][e], scale, -term.level));
            if constexpr (Masked) {
              const int j = column + e % 2, edge = diagonal + 16 * t + lane / 4 + e / 2 * 8;
              if (j >= count || (causal && (ByKeys ? j < edge : j > edge))) weight = 0.0f;
            }
            score[t][n][e] = weight;
            slope[t][n][e] = weight * (slope[t][n][e] - term.delta);
          }
      }
#pragma unroll
      for (int n = 0; n < Chunk / 16; ++n) {
        unsigned weight[Tiles][4], change[Tiles][4];
#pragma unroll
        for (int t = 0; t < Tiles; ++t) {
          if constexpr (ByKeys) pack_left<T>(weight[t], score[t][2 * n], score[t][2 * n + 1]);
          pack_left<T>(change[t], slope[t][2 * n], slope[t][2 * n + 1]);
        }
#pragma unroll
        for (int d = 0; d < tile_steps<Width>; ++d) {
          unsigned b[4];
          load_matrices_transposed(b, column_tile + down + rows_first_step<Width>(begin + 16 * n, d));
#pragma unroll
          for (int t = 0; t < Tiles; ++t) multiply_columns<T, Width>(sum[t], change[t], b, d);
          if constexpr (ByKeys) {
            load_matrices_transposed(b, slope_tile + down + rows_first_step<Width>(begin + 16 * n, d));
#pragma unroll
            for (int t = 0; t < Tiles; ++t) multiply_columns<T, Width>(value_sum[t], weight[t], b, d);
          }
        }
      }
    }
  }
};

/// A warp's sums as rows of floats [row][width].
template <int Width, int Tiles>
__device__ __forceinline__ void store_partial_rows(const float (&sum)[Tiles][Width / 8][4], float factor, float* target,
                                                   int count, int width) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < Tiles; ++t)
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int row = 16 * t + 8 * side + lane / 4;
#pragma unroll
      for (int n = 0; n < Width / 8; ++n)
        if (const int column = 8 * n + lane % 4 * 2; row < count && column < width)
          *reinterpret_cast<float2*>(target + row * width + column) = {factor * sum[t][n][2 * side],
                                                                       factor * sum[t][n][2 * side + 1]};
    }
}

template <class T, int Width, int Tiles, bool ByKeys>
__global__ void __launch_bounds__(attention_threads, 2)
    attention_gradient_streaming_kernel(AttentionGradientArguments<T> p) {
  using Warp = AttentionGradientWarp<T, Width, Tiles, ByKeys>;
  constexpr int RowTile = 16 * Tiles * attention_warps, ColumnTile = Warp::Plan::ColumnTile;
  constexpr unsigned row_bytes = tile_elements<RowTile, Width> * 2, column_bytes = tile_elements<ColumnTile, Width> * 2;
  extern __shared__ __align__(16) unsigned char attention_memory[];
  T* const row_tile = reinterpret_cast<T*>(attention_memory);
  auto* const term_tile = reinterpret_cast<QueryTerms<float>*>(attention_memory + 2 * row_bytes + 4 * column_bytes);

  if (p.after_terms) wait_for_kernels_before();
  let_next_kernel_start();
  const int length = static_cast<int>(p.rows.length), tiles = (length + RowTile - 1) / RowTile;
  const int split = static_cast<int>(blockIdx.x) / tiles, first = static_cast<int>(blockIdx.x) % tiles * RowTile;
  const index_t head = blockIdx.y, batch = blockIdx.z, pair = batch * p.shape.heads + head;
  const int width = static_cast<int>(p.shape.width), thread = static_cast<int>(threadIdx.x);
  const int warp_row = thread / 32 * 16 * Tiles;
  const bool causal = p.shape.causal;
  const bool second = thread >= attention_threads / 2;  // half of the threads fetch columns, half their slopes
  const T* const source = (second ? p.column_slopes : p.columns).head(batch, head, width);
  const index_t source_stride = second ? p.column_slopes.row_stride : p.columns.row_stride;
  const auto* const terms = p.terms + pair * p.shape.queries;
  const float scale = p.shape.scale * 1.44269504f;

  const int share = static_cast<int>(p.share);
  int from = split * share, end = static_cast<int>(p.columns.length);
  if (end - from > share) end = from + share;
  if (causal && ByKeys && from < first) from += (first - from) / ColumnTile * ColumnTile;
  if (causal && !ByKeys && first + RowTile < end) end = first + RowTile;

  const unsigned row_bank = shared_address(attention_memory), stages = row_bank + 2 * row_bytes;
  RowCopier<ColumnTile, Width, attention_threads / 2, T> copier(source + from * source_stride, source_stride, width,
                                                                thread % (attention_threads / 2));
  const auto fetch = [&](int begin, unsigned stage, QueryTerms<float>* stage_terms) {
    copier.start(stage + (second ? column_bytes : 0), end - begin);
    copier.advance();
    if (ByKeys && thread < ColumnTile) {
      const bool there = begin + thread < end;
      copy_async<8>(shared_address(stage_terms + thread), terms + (there ? begin + thread : 0), there);
    }
  };
  RowCopier<RowTile, Width, attention_threads, T>(p.rows.head(batch, head, width) + first * p.rows.row_stride,
                                                  p.rows.row_stride, width, thread)
      .start(row_bank, length - first);
  RowCopier<RowTile, Width, attention_threads, T>(
      p.row_slopes.head(batch, head, width) + first * p.row_slopes.row_stride, p.row_slopes.row_stride, width, thread)
      .start(row_bank + row_bytes, length - first);
  if (from < end) fetch(from, stages, term_tile);

  Warp warp;
  const unsigned warp_rows = row_bank + tile_offset<Width>(warp_row, 0) + rows_first_offset<Width>();
  wait_for_copies();
  __syncthreads();
  warp.start(warp_rows, warp_rows + row_bytes);
  if constexpr (!ByKeys) {
#pragma unroll
    for (int t = 0; t < Tiles; ++t)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int query = first + warp_row + 16 * t + 8 * side + static_cast<int>(threadIdx.x) % 32 / 4;
        warp.terms[t][side] = query < length ? terms[query] : QueryTerms<float>{0.0f, 0.0f};
      }
  }
  int turn = 0;
  for (int begin = from; begin < end; begin += ColumnTile) {
    wait_for_copies();
    __syncthreads();  // this tile is there for all, and all are done with the stage that is filled next
    const unsigned stage = stages + (turn != 0 ? 2 * column_bytes : 0);
    const auto* const stage_terms = term_tile + (turn != 0 ? ColumnTile : 0);
    turn ^= 1;
    if (begin + ColumnTile < end)
      fetch(begin + ColumnTile, stages + (turn != 0 ? 2 * column_bytes : 0), term_tile + (turn != 0 ? ColumnTile : 0));
    const int count = end - begin, diagonal = first + warp_row - begin;
    const bool crosses = causal && (ByKeys ? diagonal + 16 * Tiles > 1 : ColumnTile > diagonal + 1);
    if (count < ColumnTile || crosses)
      warp.template step<true>(warp_rows, warp_rows + row_bytes, stage, stage + column_bytes, stage_terms, scale, count,
                               causal, diagonal);
    else
      warp.template step<false>(warp_rows, warp_rows + row_bytes, stage, stage + column_bytes, stage_terms, scale,
                                count, causal, diagonal);
  }

  if (!p.after_terms) wait_for_kernels_before();
  const int count = length - first - warp_row;
  if (p.partial != nullptr) {
    const index_t pairs = p.shape.batch * p.shape.heads;
    float* const part = p.partial + ((2 * split * pairs + pair) * length + first + warp_row) * width;
    store_partial_rows<Width, Tiles>(warp.sum, p.shape.scale, part, count, width);
    if constexpr (ByKeys)
      store_partial_rows<Width, Tiles>(warp.value_sum, 1.0f, part + pairs * length * width, count, width);
    return;
  }
  float factor[Tiles][2];
#pragma unroll
  for (int t = 0; t < Tiles; ++t) factor[t][0] = factor[t][1] = p.shape.scale;
  T* const staging = row_tile + warp_row * tile_pitch<Width>;  // only this warp reads these rows, and it is done
  __syncwarp();
  if (p.target.data != nullptr)
    store_rows<Width, Tiles>(warp.sum, factor, staging,
                             p.target.head(batch, head, width) + (first + warp_row) * p.target.row_stride,
                             p.target.row_stride, count, width, p.accumulate);
  if constexpr (ByKeys) {
    if (p.value_target.data == nullptr) return;
#pragma unroll
    for (int t = 0; t < Tiles; ++t) factor[t][0] = factor[t][1] = 1.0f;
    store_rows<Width, Tiles>(warp.value_sum, factor, staging,
                             p.value_target.head(batch, head, width) + (first + warp_row) * p.value_target.row_stride,
                             p.value_target.row_stride, count, width, p.accumulate_values);
  }
}

/// target = sum over splits of partial[split], in their order (+ target). A thread per number; block y: dk, then dv.
template <class T>
__global__ void __launch_bounds__(256) attention_sum_splits_kernel(AttentionGradientArguments<T> p, index_t splits) {
  const HeadRows<T>& target = blockIdx.y == 0 ? p.target : p.value_target;
  const bool accumulate = blockIdx.y == 0 ? p.accumulate : p.accumulate_values;
  const index_t width = p.shape.width, numbers = p.shape.batch * p.shape.heads * p.shape.keys * width;
  const index_t at = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (target.data == nullptr || at >= numbers) return;
  float sum = 0.0f;
  for (index_t split = 0; split < splits; ++split) sum += p.partial[(2 * split + blockIdx.y) * numbers + at];
  const index_t row = at / width, pair = row / p.shape.keys;
  T* const to = target.head(pair / p.shape.heads, pair % p.shape.heads, width) +
                row % p.shape.keys * target.row_stride + at % width;
  store_number(to, accumulate ? sum + load_number(to) : sum);
}

template <int Width, int Tiles, bool ByKeys, class T>
void launch_attention_gradient(Context<Cuda>& context, AttentionGradientArguments<T> p) {
  using Plan = AttentionGradientPlan<Width, Tiles, ByKeys>;
  constexpr int RowTile = 16 * Tiles * attention_warps;
  constexpr int bytes = (2 * tile_elements<RowTile, Width> + 4 * tile_elements<Plan::ColumnTile, Width>)*2 +
                        (ByKeys ? 2 * Plan::ColumnTile * static_cast<int>(sizeof(QueryTerms<float>)) : 0);
  const unsigned row_tiles = blocks_for(p.rows.length, RowTile);
  const index_t pairs = p.shape.batch * p.shape.heads, blocks = pairs * row_tiles;
  const index_t column_tiles = (p.columns.length + Plan::ColumnTile - 1) / Plan::ColumnTile;
  index_t splits = 1;
  p.share = p.columns.length;
  Scratch<Cuda> scratch(context);
  if (ByKeys && !p.shape.causal && blocks < context.multiprocessors()) {
    // Two blocks per multiprocessor, of at least four tiles each.
    const index_t wanted = (2 * context.multiprocessors() + blocks - 1) / blocks;
    const index_t most = column_tiles / 4 > 1 ? column_tiles / 4 : 1;
    const index_t tiles_each = (column_tiles + std::min(wanted, most) - 1) / std::min(wanted, most);
    p.share = tiles_each * Plan::ColumnTile;
    splits = (column_tiles + tiles_each - 1) / tiles_each;
    if (splits > 1) p.partial = scratch.allocate<float>(2 * splits * pairs * p.shape.keys * p.shape.width);
  }
  const dim3 grid(row_tiles * static_cast<unsigned>(splits), static_cast<unsigned>(p.shape.heads),
                  static_cast<unsigned>(p.shape.batch));
  context.launch("attention_gradient_streaming_kernel", {grid, attention_threads, bytes, 1, true},
                 attention_gradient_streaming_kernel<T, Width, Tiles, ByKeys>, p);
  if (splits == 1) return;
  const dim3 sums(blocks_for(pairs * p.shape.keys * p.shape.width, 256), 2);
  context.launch("attention_sum_splits_kernel", {sums, 256}, attention_sum_splits_kernel<T>, p, splits);
}

/// `terms` in powers of two.
template <class T>
void attention_backward_streaming(Context<Cuda>& context, const kernel::AttentionShape& shape, const T* q, const T* k,
                                  const T* v, const QueryTerms<float>* terms, const T* dout, T* dq, bool accumulate_q,
                                  T* dk, bool accumulate_k, T* dv, bool accumulate_v) {
  const HeadRows<const T> queries{q, shape.q_row, shape.queries}, keys{k, shape.k_row, shape.keys};
  const HeadRows<const T> values{v, shape.v_row, shape.keys}, slopes{dout, shape.out_row, shape.queries};
  with_tile_width(shape.width, [&](auto width) {
    constexpr int Width = decltype(width)::value;
    if (dq != nullptr && shape.queries > 0)
      launch_attention_gradient<Width, Width <= 80 ? 2 : 1, false, T>(
          context,
          {shape, queries, slopes, keys, values, terms, {dq, shape.q_row, shape.queries}, {}, accumulate_q, false});
    if ((dk != nullptr || dv != nullptr) && shape.keys > 0)
      launch_attention_gradient<Width, Width <= 64 ? 2 : 1, true, T>(
          context, {shape, keys, values, queries, slopes, terms, HeadRows<T>{dk, shape.k_row, shape.keys},
                    HeadRows<T>{dv, shape.v_row, shape.keys}, accumulate_k, accumulate_v, nullptr, 0, dq == nullptr || shape.queries == 0});
  });
}

template <class T>
void attention_backward(Context<Cuda>& context, const kernel::AttentionShape& shape, const T* q, const T* k, const T* v,
                        const T* out, const compute_t<T>* log_sum_exp, const T* dout, T* dq, bool accumulate_q, T* dk,
                        bool accumulate_k, T* dv, bool accumulate_v) {
  const index_t rows = shape.batch * shape.queries * shape.heads;
  if (shape.batch * shape.heads * shape.width == 0) return;
  constexpr int count = 16 / static_cast<int>(sizeof(T));
  const index_t strides = shape.out_row | shape.width;
  const bool streaming = sizeof(T) == 2 && rows > 0 && shape.keys > 0 &&
                         fits_matrix_units(shape, address_bits(q, k, v, out, dout, dq, dk, dv));
  bool warpgroups = false;
  if constexpr (sizeof(T) == 2) warpgroups = streaming && prefers_gradient_warpgroups<T>(shape);
  const index_t terms_stride = warpgroups ? gradient_terms_stride(shape) : shape.queries;
  Scratch<Cuda> scratch(context);
  auto* const terms = scratch.allocate<QueryTerms<compute_t<T>>>(shape.batch * shape.heads * terms_stride);
  if (rows > 0) {
    const float level_scale = streaming ? 1.44269504f : 1.0f;
    const dim3 blocks(blocks_for(shape.queries * shape.heads, 32), static_cast<unsigned>(shape.batch));
    const bool vectors = strides % count == 0 && address_bits(out, dout) % 16 == 0;
    context.launch("attention_terms_kernel", {blocks, 256}, vectors ? attention_terms_kernel<count, T> : attention_terms_kernel<1, T>,
                   shape, out, dout, log_sum_exp, level_scale, terms, terms_stride);
  }
  if constexpr (sizeof(T) == 2) {
    if (warpgroups && dq != nullptr && dk != nullptr && dv != nullptr && prefers_joint_gradient(shape, context.multiprocessors()))
      return attention_backward_joint(context, shape, q, k, v, terms, dout, dq, accumulate_q, dk, accumulate_k, dv,
                                      accumulate_v);
    if (warpgroups)
      return attention_backward_warpgroups(context, shape, q, k, v, terms, dout, dq, accumulate_q, dk, accumulate_k, dv,
                                           accumulate_v);
    if (streaming)
      return attention_backward_streaming(context, shape, q, k, v, terms, dout, dq, accumulate_q, dk, accumulate_k, dv,
                                          accumulate_v);
  }
  attention_backward_plain(context, shape, q, k, v, terms, dout, dq, accumulate_q, dk, accumulate_k, dv, accumulate_v);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
