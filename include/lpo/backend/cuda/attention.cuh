// SPDX-License-Identifier: MIT
// Attention on CUDA devices: streaming softmax on tensor cores for 16-bit heads, plain tiles for everything else.
#pragma once

#include <lpo/backend/cuda/attention_backward.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// out = softmax(scale q k^T) v, in powers of two. Per tile of 64 keys:
///   s = q k^T,  p = 2^(c s - m) with c = scale log2(e),  l += sum_j p,  o += p v
/// where m follows the maximum of c s but is raised, and o and l rescaled, only when the maximum has grown by more than 8
/// since: p stays below 2^8, which float sums and 16-bit storage hold as well as numbers below 1.
///
/// Launch: block = 4 warps, 16 * Tiles queries each, of one (batch, head). Memory: the queries and two stages of keys and
/// values in shared memory; scores, weights and sums live in registers. Numerics: products of T in float, weights rounded to
/// T for their product, l from unrounded weights. Limits: fits_matrix_units.
template <class T>
struct AttentionForwardArguments {
  kernel::AttentionShape shape;
  HeadRows<const T> q, k, v;
  HeadRows<T> out;
  float* log_sum_exp;
};

template <class T, int Width, int Tiles>
struct AttentionForwardWarp {
  static constexpr int KeyTile = 64;
  static constexpr float headroom = 8.0f;

  unsigned query[Tiles][Width / 16][4];
  float total[Tiles][Width / 8][4];
  float highest[Tiles][2], sum[Tiles][2];  ///< per row; the sum is of this lane's columns

  __device__ __forceinline__ void start(unsigned q_tile) {
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
#pragma unroll
      for (int step = 0; step < Width / 16; ++step)
        load_matrices(query[t][step],
                      q_tile + rows_first_offset<Width>() + tile_offset<Width>(16 * t, 16 * step));
#pragma unroll
      for (int n = 0; n < Width / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) total[t][n][e] = 0.0f;
      highest[t][0] = highest[t][1] = -INFINITY;
      sum[t][0] = sum[t][1] = 0.0f;
    }
  }

  /// One tile of keys, the first `count` of them. Masked: some are hidden, behind `count` or, with causal, from row i of the
  /// warp those after diagonal + i.
  template <bool Masked>
  __device__ __forceinline__ void step(unsigned k_tile, unsigned v_tile, float scale, index_t count, bool causal,
                                       index_t diagonal) {
    float score[Tiles][KeyTile / 8][4];
#pragma unroll
    for (int t = 0; t < Tiles; ++t)
#pragma unroll
      for (int n = 0; n < KeyTile / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) score[t][n][e] = 0.0f;
#pragma unroll
    for (int depth = 0; depth < Width / 16; ++depth)
#pragma unroll
      for (int n = 0; n < KeyTile / 16; ++n) {
        if (Masked && 16 * n >= count) continue;
        unsigned b[4];
        load_matrices(b, k_tile + depth_first_offset<Width>() + tile_offset<Width>(16 * n, 16 * depth));
#pragma unroll
        for (int t = 0; t < Tiles; ++t) {
          multiply_fragments<T>(score[t][2 * n], query[t][depth], b[0], b[1]);
          multiply_fragments<T>(score[t][2 * n + 1], query[t][depth], b[2], b[3]);
        }
      }
    const int lane = threadIdx.x % 32;
    if constexpr (Masked) {
#pragma unroll
      for (int t = 0; t < Tiles; ++t)
#pragma unroll
        for (int n = 0; n < KeyTile / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = 8 * n + lane % 4 * 2 + e % 2, row = 16 * t + lane / 4 + e / 2 * 8;
            if (column >= count || (causal && column > diagonal + row)) score[t][n][e] = -INFINITY;
          }
    }
    soften(score, scale);
#pragma unroll
    for (int n = 0; n < KeyTile / 16; ++n) {
      if (Masked && 16 * n >= count) break;
      unsigned weight[Tiles][4];
#pragma unroll
      for (int t = 0; t < Tiles; ++t) pack_left<T>(weight[t], score[t][2 * n], score[t][2 * n + 1]);
#pragma unroll
      for (int d = 0; d < Width / 16; ++d) {
        unsigned b[4];
        load_matrices_transposed(b, v_tile + rows_first_offset<Width>() + tile_offset<Width>(16 * n, 16 * d));
#pragma unroll
        for (int t = 0; t < Tiles; ++t) {
          multiply_fragments<T>(total[t][2 * d], weight[t], b[0], b[1]);
          multiply_fragments<T>(total[t][2 * d + 1], weight[t], b[2], b[3]);
        }
      }
    }
  }

  /// Products become weights; the sums follow.
  __device__ __forceinline__ void soften(float (&score)[Tiles][KeyTile / 8][4], float scale) {
    float top[Tiles][2];
    bool grown = false;
#pragma unroll
    for (int t = 0; t < Tiles; ++t)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float most = fmaxf(score[t][0][2 * side], score[t][0][2 * side + 1]);
#pragma unroll
        for (int n = 1; n < KeyTile / 8; ++n)
          most = fmaxf(most, fmaxf(score[t][n][2 * side], score[t][n][2 * side + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        top[t][side] = most * scale;
        grown |= top[t][side] > highest[t][side] + headroom;
      }
    if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
      for (int t = 0; t < Tiles; ++t)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const float level = fmaxf(highest[t][side], top[t][side]);
          const float shrink = exp2_approximate(highest[t][side] - level);
          highest[t][side] = level;
          sum[t][side] *= shrink;
#pragma unroll
          for (int n = 0; n < Width / 8; ++n) {
            total[t][n][2 * side] *= shrink;
            total[t][n][2 * side + 1] *= shrink;
          }
        }
    }
#pragma unroll
    for (int t = 0; t < Tiles; ++t)
#pragma unroll
      for (int n = 0; n < KeyTile / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          score[t][n][e] = exp2_approximate(fmaf(score[t][n][e], scale, -highest[t][e / 2]));
          sum[t][e / 2] += score[t][n][e];
        }
  }
};

template <class T, int Width, int Tiles>
__global__ void __launch_bounds__(attention_threads, Tiles == 1 && Width <= 80 ? 4 : 2)
    attention_forward_streaming_kernel(AttentionForwardArguments<T> p) {
  using Warp = AttentionForwardWarp<T, Width, Tiles>;
  constexpr int QueryTile = 16 * Tiles * attention_warps, KeyTile = Warp::KeyTile;
  constexpr unsigned key_bytes = tile_elements<KeyTile, Width> * 2;
  extern __shared__ __align__(16) unsigned char attention_memory[];
  T* const q_rows = reinterpret_cast<T*>(attention_memory);
  const unsigned q_tile = shared_address(q_rows), stages = q_tile + tile_elements<QueryTile, Width> * 2;

  const index_t tiles = (p.shape.queries + QueryTile - 1) / QueryTile;
  const index_t pair = blockIdx.x / tiles, first = blockIdx.x % tiles * QueryTile;
  const int width = static_cast<int>(p.shape.width), warp_row = static_cast<int>(threadIdx.x) / 32 * 16 * Tiles;
  const T* const queries = p.q.head(pair, p.shape.heads, width) + first * p.q.row_stride;
  const T* const keys = p.k.head(pair, p.shape.heads, width);
  const T* const values = p.v.head(pair, p.shape.heads, width);
  const bool causal = p.shape.causal;
  const index_t end = causal && first + QueryTile < p.shape.keys ? first + QueryTile : p.shape.keys;
  const float scale = p.shape.scale * 1.44269504f;

  const auto fetch = [&](index_t begin, unsigned stage) {
    copy_rows_async<KeyTile, Width>(stage, keys + begin * p.k.row_stride, p.k.row_stride, p.shape.keys - begin, width);
    copy_rows_async<KeyTile, Width>(stage + key_bytes, values + begin * p.v.row_stride, p.v.row_stride,
                                    p.shape.keys - begin, width);
  };
  copy_rows_async<QueryTile, Width>(q_tile, queries, p.q.row_stride, p.shape.queries - first, width);
  fetch(0, stages);
  Warp warp;
  unsigned stage = stages, other = stages + 2 * key_bytes;
  for (index_t begin = 0; begin < end; begin += KeyTile) {
    wait_for_copies();
    __syncthreads();  // this tile is there for all, and all are done with the stage that is filled next
    if (begin == 0) warp.start(q_tile + tile_offset<Width>(warp_row, 0));
    if (begin + KeyTile < end) fetch(begin + KeyTile, other);
    const index_t count = p.shape.keys - begin, diagonal = first + warp_row - begin;
    if (count < KeyTile || (causal && KeyTile > diagonal + 1))
      warp.template step<true>(stage, stage + key_bytes, scale, count, causal, diagonal);
    else
      warp.template step<false>(stage, stage + key_bytes, scale, count, causal, diagonal);
    const unsigned kept = stage;
    stage = other;
    other = kept;
  }

  const int lane = threadIdx.x % 32;
  const index_t rows = p.shape.queries - first - warp_row;
  float inverse[Tiles][2];
#pragma unroll
  for (int t = 0; t < Tiles; ++t)
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float sum = warp.sum[t][side];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      inverse[t][side] = 1.0f / sum;
      const int row = 16 * t + 8 * side + lane / 4;
      if (p.log_sum_exp != nullptr && lane % 4 == 0 && row < rows)
        p.log_sum_exp[pair * p.shape.queries + first + warp_row + row] =
            warp.highest[t][side] * 0.693147181f + logf(sum);
    }
  // The warp's queries are in registers: their place in shared memory is free.
  store_rows<Width, Tiles>(warp.total, inverse, q_rows + warp_row * tile_pitch<Width>,
                           p.out.head(pair, p.shape.heads, width) + (first + warp_row) * p.out.row_stride,
                           p.out.row_stride, rows, width, false);
}

template <int Width, int Tiles, class T>
void launch_attention_forward(Context<Cuda>& context, const AttentionForwardArguments<T>& arguments) {
  constexpr int QueryTile = 16 * Tiles * attention_warps, KeyTile = AttentionForwardWarp<T, Width, Tiles>::KeyTile;
  constexpr int bytes = (tile_elements<QueryTile, Width> + 4 * tile_elements<KeyTile, Width>)*2;
  const auto kernel = attention_forward_streaming_kernel<T, Width, Tiles>;
  allow_shared_memory(kernel, bytes, "attention_forward_streaming_kernel");
  const auto& shape = arguments.shape;
  const unsigned blocks = static_cast<unsigned>(shape.batch * shape.heads) * blocks_for(shape.queries, QueryTile);
  kernel<<<blocks, attention_threads, bytes, context.stream()>>>(arguments);
  context.check_launch("attention_forward_streaming_kernel");
}

/// Two rows of fragments per warp halve the reads of shared memory, where registers allow and the blocks fill the device.
template <class T>
void attention_forward_streaming(Context<Cuda>& context, const AttentionForwardArguments<T>& arguments) {
  const auto& shape = arguments.shape;
  const index_t wide_blocks = shape.batch * shape.heads * ((shape.queries + 127) / 128);
  with_tile_width(shape.width, [&](auto width) {
    constexpr int Width = decltype(width)::value;
    if constexpr (Width <= 80)
      if (wide_blocks > context.multiprocessors()) return launch_attention_forward<Width, 2>(context, arguments);
    launch_attention_forward<Width, 1>(context, arguments);
  });
}

/// The softmax over nothing: zeros, and minus infinity as the logarithm of their sum (null: not wanted).
template <class T>
__global__ void __launch_bounds__(256) attention_without_keys_kernel(kernel::AttentionShape shape, T* out,
                                                                     compute_t<T>* log_sum_exp) {
  using Number = compute_t<T>;
  const index_t at = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x, row = shape.heads * shape.width;
  const index_t rows = shape.batch * shape.queries;
  if (at < rows * row) store_number(out + at / row * shape.out_row + at % row, Number{});
  if (log_sum_exp != nullptr && at < rows * shape.heads) log_sum_exp[at] = -static_cast<Number>(INFINITY);
}

}  // namespace detail

namespace kernel {

template <>
struct Attention<Cuda> {
  /// Without keys `out` is zero and `log_sum_exp` is minus infinity.
  template <class T>
  static void forward(Context<Cuda>& context, const AttentionShape& shape, const T* q, const T* k, const T* v, T* out,
                      compute_t<T>* log_sum_exp) {
    if (shape.batch * shape.heads * shape.queries * shape.width == 0) return;
    if (shape.keys == 0) {
      const unsigned blocks = detail::blocks_for(shape.batch * shape.queries * shape.heads * shape.width, 256);
      detail::attention_without_keys_kernel<<<blocks, 256, 0, context.stream()>>>(shape, out, log_sum_exp);
      context.check_launch("attention_without_keys_kernel");
      return;
    }
    if constexpr (sizeof(T) == 2)
      if (detail::fits_matrix_units(shape, detail::address_bits(q, k, v, out)))
        return detail::attention_forward_streaming<T>(context, {shape,
                                                                {q, shape.q_row, shape.queries},
                                                                {k, shape.k_row, shape.keys},
                                                                {v, shape.v_row, shape.keys},
                                                                {out, shape.out_row, shape.queries},
                                                                log_sum_exp});
    detail::attention_forward_plain(context, shape, q, k, v, out, log_sum_exp);
  }

  /// The probabilities are computed again, once per side: a block owns queries and sums dq, or owns keys and sums dk and dv,
  /// so that nothing is summed by two blocks at once and the gradients have the same bits in every run.
  template <class T>
  static void backward(Context<Cuda>& context, const AttentionShape& shape, const T* q, const T* k, const T* v,
                       const T* out, const compute_t<T>* log_sum_exp, const T* dout, T* dq, bool accumulate_q, T* dk,
                       bool accumulate_k, T* dv, bool accumulate_v) {
    detail::attention_backward(context, shape, q, k, v, out, log_sum_exp, dout, dq, accumulate_q, dk, accumulate_k, dv,
                               accumulate_v);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
