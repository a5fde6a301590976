// SPDX-License-Identifier: MIT
// Attention on CUDA devices: streaming softmax on tensor cores for 16-bit heads, plain tiles for everything else.
#pragma once

#include <lpo/backend/cuda/attention_backward.cuh>
#include <lpo/backend/cuda/attention_few_keys.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// out = softmax(scale q k^T) v, in powers of two. Per tile of 32 keys:
///   s = q k^T,  p = 2^(c s - m) with c = scale log2(e),  l += sum_j p,  o += p v
/// where m is raised to the maximum of c s, and o and l rescaled, only when the sum of a thread's p in a tile exceeds
/// 1024: nothing else looks for a maximum. Weights of up to 1024 are as good in float sums and 16-bit storage as
/// weights below 1.
///
/// Launch: block (x, head, batch) = 4 warps of 16 * Tiles queries; two to four blocks share a multiprocessor, so that
/// one warp's exponentials run beside another's products. Memory: the queries and rings of three tiles of keys and of
/// values in shared memory, filled two tiles ahead; scores, weights and sums in registers. Numerics: products of T in
/// float, weights rounded to T for their product, l from unrounded weights. Limits: fits_matrix_units.
template <class T>
struct AttentionForwardArguments {
  kernel::AttentionShape shape;
  HeadRows<const T> q, k, v;
  HeadRows<T> out;
  float* log_sum_exp;
};

template <class T, int Width, int Tiles>
struct AttentionForwardWarp {
  static constexpr int KeyTile = 32, Steps = tile_steps<Width>;
  static constexpr int Blocks = Width <= 40 ? 4 : Width <= 128 ? 3 : 2;  ///< on a multiprocessor
  static constexpr bool keep_queries =  ///< in registers
      Blocks == 2 || Tiles * (Width / 2 + KeyTile * 3 / 4 + Width / 4) <= (Blocks == 4 ? 96 : 130);
  static constexpr float limit = 1024.0f;

  using Scores = float[Tiles][KeyTile / 8][4];
  using Weights = unsigned[Tiles][KeyTile / 16][4];

  unsigned query[keep_queries ? Tiles : 1][Steps][4];
  float total[Tiles][Width / 8][4];
  float level[Tiles][2], sum[Tiles][2];  ///< m of a row; this lane's share of l

  /// `q_tile` and the tiles below are this lane's addresses.
  __device__ __forceinline__ void start(unsigned q_tile) {
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
      if constexpr (keep_queries)
#pragma unroll
        for (int step = 0; step < Steps; ++step)
          load_matrices(query[t][step], q_tile + rows_first_step<Width>(16 * t, step));
#pragma unroll
      for (int n = 0; n < Width / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) total[t][n][e] = 0.0f;
      level[t][0] = level[t][1] = -INFINITY;
      sum[t][0] = sum[t][1] = 0.0f;
    }
  }

  __device__ __forceinline__ void multiply_keys(Scores& score, unsigned q_tile, unsigned k_tile) const {
#pragma unroll
    for (int step = 0; step < Steps; ++step)
#pragma unroll
      for (int n = 0; n < KeyTile / 16; ++n) {
        unsigned b[4];
        load_matrices(b, k_tile + depth_first_step<Width>(16 * n, step));
#pragma unroll
        for (int t = 0; t < Tiles; ++t) {
          if constexpr (keep_queries) {
            multiply_step<T, Width>(score[t][2 * n], score[t][2 * n + 1], query[t][step], b, step);
          } else {
            unsigned a[4];
            load_matrices(a, q_tile + rows_first_step<Width>(16 * t, step));
            multiply_step<T, Width>(score[t][2 * n], score[t][2 * n + 1], a, b, step);
          }
        }
      }
  }

  __device__ __forceinline__ void multiply_values(const Weights& weight, unsigned v_tile) {
#pragma unroll
    for (int n = 0; n < KeyTile / 16; ++n)
#pragma unroll
      for (int step = 0; step < Steps; ++step) {
        unsigned b[4];
        load_matrices_transposed(b, v_tile + rows_first_step<Width>(16 * n, step));
#pragma unroll
        for (int t = 0; t < Tiles; ++t) multiply_columns<T, Width>(total[t], weight[t][n], b, step);
      }
  }

  /// weight = 2^(scale score - level), and this lane's sums of a tile's weights.
  __device__ __forceinline__ void exponentials(const Scores& score, float scale, Weights& weight,
                                               float (&tile_sum)[Tiles][2]) const {
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
      tile_sum[t][0] = tile_sum[t][1] = 0.0f;
#pragma unroll
      for (int n = 0; n < KeyTile / 8; ++n) {
        float p[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p[e] = exp2_approximate(fmaf(score[t][n][e], scale, -level[t][e / 2]));
          tile_sum[t][e / 2] += p[e];
        }
        weight[t][n / 2][n % 2 * 2] = pack_pair<T>(p[0], p[1]);
        weight[t][n / 2][n % 2 * 2 + 1] = pack_pair<T>(p[2], p[3]);
      }
    }
  }

  /// Hides the keys from `count` on and, with causal, from row i of the warp those after diagonal + i.
  __device__ __forceinline__ void hide(Scores& score, int count, bool causal, int diagonal) {
    const int lane = threadIdx.x % 32;
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

  /// One tile of keys and values, of which the first `count` count.
  __device__ __forceinline__ void step(unsigned q_tile, unsigned k_tile, unsigned v_tile, float scale, int count,
                                       bool causal, int diagonal) {
    Scores score{};
    Weights weight;
    float tile_sum[Tiles][2];
    multiply_keys(score, q_tile, k_tile);
    if (count < KeyTile || (causal && KeyTile > diagonal + 1)) hide(score, count, causal, diagonal);
    exponentials(score, scale, weight, tile_sum);
    bool over = false;
#pragma unroll
    for (int t = 0; t < Tiles; ++t) over |= !(tile_sum[t][0] <= limit) || !(tile_sum[t][1] <= limit);
    if (__any_sync(0xffffffffu, over)) raise(score, scale, weight, tile_sum);
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
      sum[t][0] += tile_sum[t][0];
      sum[t][1] += tile_sum[t][1];
    }
    multiply_values(weight, v_tile);
  }

  /// Raises the levels to the maxima of the rows, rescales what is summed, and takes the exponentials again.
  __device__ __forceinline__ void raise(const Scores& score, float scale, Weights& weight,
                                        float (&tile_sum)[Tiles][2]) {
#pragma unroll
    for (int t = 0; t < Tiles; ++t)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float most = score[t][0][2 * side];
#pragma unroll
        for (int n = 0; n < KeyTile / 8; ++n)
          most = fmaxf(most, fmaxf(score[t][n][2 * side], score[t][n][2 * side + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float raised = fmaxf(level[t][side], most * scale);  // the first tile has a visible key: finite
        const float shrink = exp2_approximate(level[t][side] - raised);
        level[t][side] = raised;
        sum[t][side] *= shrink;
#pragma unroll
        for (int n = 0; n < Width / 8; ++n) {
          total[t][n][2 * side] *= shrink;
          total[t][n][2 * side + 1] *= shrink;
        }
      }
    exponentials(score, scale, weight, tile_sum);
  }
};

template <class T, int Width, int Tiles>
__global__ void __launch_bounds__(attention_threads, AttentionForwardWarp<T, Width, Tiles>::Blocks)
    attention_forward_streaming_kernel(AttentionForwardArguments<T> p) {
  using Warp = AttentionForwardWarp<T, Width, Tiles>;
  constexpr int QueryTile = 16 * Tiles * attention_warps, KeyTile = Warp::KeyTile;
  constexpr unsigned tile_bytes = tile_elements<KeyTile, Width> * 2;
  extern __shared__ __align__(16) unsigned char attention_memory[];
  T* const q_rows = reinterpret_cast<T*>(attention_memory);
  const unsigned q_tile = shared_address(q_rows), rings = q_tile + tile_elements<QueryTile, Width> * 2;

  const int thread = static_cast<int>(threadIdx.x), warp_row = thread / 32 * 16 * Tiles;
  const int first = static_cast<int>(blockIdx.x) * QueryTile, width = static_cast<int>(p.shape.width);
  const int queries = static_cast<int>(p.shape.queries), keys = static_cast<int>(p.shape.keys);
  const index_t head = blockIdx.y, batch = blockIdx.z;
  const bool causal = p.shape.causal;
  const int end = causal && first + QueryTile < keys ? first + QueryTile : keys;
  const float scale = p.shape.scale * 1.44269504f;
  RowCopier<QueryTile, Width, attention_threads, T>(p.q.head(batch, head, width) + first * p.q.row_stride,
                                                    p.q.row_stride, width, thread)
      .start(q_tile, queries - first);

  // Half of the threads fetch keys, and half fetch values.
  const bool fetches_values = thread >= attention_threads / 2;
  const HeadRows<const T>& source = fetches_values ? p.v : p.k;
  RowCopier<KeyTile, Width, attention_threads / 2, T> copier(source.head(batch, head, width), source.row_stride, width,
                                                             thread % (attention_threads / 2));
  const unsigned ring = rings + (fetches_values ? 3 * tile_bytes : 0);
  unsigned free_slot = 0;
  int not_fetched = end;
  const auto advance = [](unsigned& slot) { slot = slot == 2 * tile_bytes ? 0 : slot + tile_bytes; };
  const auto fetch = [&] {
    if (not_fetched > 0) {
      copier.start(ring + free_slot, not_fetched);
      copier.advance();
      not_fetched -= KeyTile;
      advance(free_slot);
    }
  };

  Warp warp;
  const unsigned warp_queries = q_tile + tile_offset<Width>(warp_row, 0) + rows_first_offset<Width>();
  const unsigned k_ring = rings + depth_first_offset<Width>(),
                 v_ring = rings + 3 * tile_bytes + rows_first_offset<Width>();
  fetch();
  close_copy_group();
  fetch();
  close_copy_group();
  unsigned slot = 0;
  for (int begin = 0; begin < end; begin += KeyTile) {
    wait_for_groups<1>();
    __syncthreads();  // this tile is there for all, and all are done with the one that is overwritten next
    fetch();
    close_copy_group();
    if (begin == 0) warp.start(warp_queries);
    warp.step(warp_queries, k_ring + slot, v_ring + slot, scale, end - begin, causal, first + warp_row - begin);
    advance(slot);
  }

  const int lane = thread % 32, count = queries - first - warp_row;
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
      if (p.log_sum_exp != nullptr && lane % 4 == 0 && row < count)
        p.log_sum_exp[(batch * p.shape.heads + head) * queries + first + warp_row + row] =
            warp.level[t][side] * 0.693147181f + logf(sum);
    }
  // Only this warp reads its queries, and it is done: their place in shared memory is free.
  __syncwarp();
  store_rows<Width, Tiles>(warp.total, inverse, q_rows + warp_row * tile_pitch<Width>,
                           p.out.head(batch, head, width) + (first + warp_row) * p.out.row_stride, p.out.row_stride,
                           count, width, false);
}

template <int Width, int Tiles, class T>
void launch_attention_forward(Context<Cuda>& context, const AttentionForwardArguments<T>& arguments) {
  constexpr int QueryTile = 16 * Tiles * attention_warps, KeyTile = AttentionForwardWarp<T, Width, Tiles>::KeyTile;
  constexpr int bytes = (tile_elements<QueryTile, Width> + 6 * tile_elements<KeyTile, Width>)*2;
  const auto& shape = arguments.shape;
  const dim3 grid(blocks_for(shape.queries, QueryTile), static_cast<unsigned>(shape.heads),
                  static_cast<unsigned>(shape.batch));
  context.launch("attention_forward_streaming_kernel", {grid, attention_threads, bytes},
                 attention_forward_streaming_kernel<T, Width, Tiles>, arguments);
}

/// Two rows of fragments per warp halve the reads of shared memory, where registers allow and blocks remain for most of
/// the device.
template <class T>
void attention_forward_streaming(Context<Cuda>& context, const AttentionForwardArguments<T>& arguments) {
  const auto& shape = arguments.shape;
  const index_t wide_blocks = shape.batch * shape.heads * ((shape.queries + 127) / 128);
  with_tile_width(shape.width, [&](auto width) {
    constexpr int Width = decltype(width)::value;
    if constexpr (Width <= 80)
      if (2 * wide_blocks > context.multiprocessors()) return launch_attention_forward<Width, 2>(context, arguments);
    launch_attention_forward<Width, 1>(context, arguments);
  });
}

/// The softmax over nothing: zeros, and minus infinity as the logarithm of their sum (null: not wanted).
template <class T>
__global__ void __launch_bounds__(256)
    attention_without_keys_kernel(kernel::AttentionShape shape, T* out, compute_t<T>* log_sum_exp) {
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
      context.launch("attention_without_keys_kernel", {blocks, 256}, detail::attention_without_keys_kernel<T>, shape, out,
                     log_sum_exp);
      return;
    }
    if constexpr (sizeof(T) == 2)
      if (detail::fits_matrix_units(shape, detail::address_bits(q, k, v, out))) {
        const detail::HeadRows<const T> queries{q, shape.q_row, shape.queries}, keys{k, shape.k_row, shape.keys};
        const detail::HeadRows<const T> values{v, shape.v_row, shape.keys};
        const detail::HeadRows<T> results{out, shape.out_row, shape.queries};
        if (detail::prefers_warpgroups<T>(shape) && detail::prefers_few_keys(shape))
          return detail::attention_forward_few_keys(context, shape, queries, keys, values, results, log_sum_exp);
        if (detail::prefers_warpgroups<T>(shape))
          return detail::attention_forward_warpgroups(context, shape, queries, keys, values, results, log_sum_exp);
        return detail::attention_forward_streaming<T>(context, {shape, queries, keys, values, results, log_sum_exp});
      }
    detail::attention_forward_plain(context, shape, q, k, v, out, log_sum_exp);
  }

  /// The probabilities are computed again, once per side: a block owns queries and sums dq, or owns keys and sums dk
  /// and dv, so that nothing is summed by two blocks at once and the gradients have the same bits in every run.
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
