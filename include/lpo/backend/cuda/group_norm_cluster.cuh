// SPDX-License-Identifier: MIT
// Forward group norm in one pass over memory, on GPUs with clusters (Hopper): an image's groups stay in shared memory.
#pragma once

#include <numeric>

#include <cooperative_groups.h>

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/normalization.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Formula as in group_norm.cuh.
/// Launch: cluster = the blocks x that share the pixels of (tile of channels y, image z); a tile holds whole groups. A
/// block has a column of threads per Vector channels and rows of threads that share its pixels. Memory: x is read once,
/// all of a block at a time, and y written once. A thread reads what it copied itself. Numerics: in float, the mean
/// about the group's first number, then the squares about the mean; sums of threads, of warps and of blocks in a fixed
/// order. Limits: a block's pixels fit in shared memory; 16 bytes of channels per thread. Code before sm_90 has no
/// body.
struct GroupNormCluster {
  index_t spatial = 0, c = 0;
  int tile = 0, width = 0;  ///< channels of a tile, of a group
  int pixels = 0;           ///< of a block
  float epsilon = 0;
  bool silu = false;
};

inline constexpr int norm_cluster_threads = 512, norm_cluster_groups = 128;

/// 1 / (1 + exp(-z)) from the device's fast exponential: relative error about 1e-6 in float.
template <class Number>
__device__ __forceinline__ Number sigmoid_number(Number z) {
  if constexpr (std::is_same_v<Number, float>)
    return __fdividef(1.0f, 1.0f + __expf(-z));
  else
    return 1 / (1 + ::exp(-z));
}

template <int Vector, class T>
__global__ void __launch_bounds__(norm_cluster_threads, 2)
    group_norm_cluster_kernel(const __grid_constant__ GroupNormCluster g, const T* x, const T* weight, const T* bias,
                              T* y, float* mean, float* inverse_deviation) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  __shared__ float shares[2][norm_cluster_groups], shifts[norm_cluster_groups], inverses[norm_cluster_groups];
  extern __shared__ __align__(16) unsigned char norm_shared[];
  const int rows = static_cast<int>(blockDim.y), column = static_cast<int>(threadIdx.x) * Vector;
  const int row = static_cast<int>(threadIdx.y),
            thread = row * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  const int groups = g.tile / g.width;
  const index_t first = static_cast<index_t>(blockIdx.x) * g.pixels,
                tile_channel = static_cast<index_t>(blockIdx.y) * g.tile;
  const int pixels = static_cast<int>(max(index_t{0}, min(static_cast<index_t>(g.pixels), g.spatial - first)));
  const index_t image = blockIdx.z * g.spatial * g.c + tile_channel;
  T* const kept = reinterpret_cast<T*>(norm_shared);
  float* const partial =
      reinterpret_cast<float*>(norm_shared + static_cast<std::size_t>(g.pixels) * g.tile * sizeof(T));

  for (int pixel = row; pixel < pixels; pixel += rows)
    copy_async<16>(shared_address(kept + pixel * g.tile + column), x + image + (first + pixel) * g.c + column, true);
  float origin[Vector], scale[Vector], offset[Vector];
  int group[Vector];
  load_numbers<Vector>(weight + tile_channel + column, scale);
  load_numbers<Vector>(bias + tile_channel + column, offset);
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    group[i] = (column + i) / g.width;
    origin[i] = widen(x[image + group[i] * g.width]);
  }
  wait_for_copies();

  /// Sums over the cluster's pixels of add(channel of the thread, number about the origin), a group in each of the
  /// first threads.
  const auto sum_groups = [&](float(&share)[norm_cluster_groups], auto&& add) {
    float sums[Vector] = {};
    for (int pixel = row; pixel < pixels; pixel += rows) {
      float value[Vector];
      load_numbers<Vector>(kept + pixel * g.tile + column, value);
#pragma unroll
      for (int i = 0; i < Vector; ++i) sums[i] += add(i, value[i] - origin[i]);
    }
    store_numbers<Vector>(partial + row * g.tile + column, sums);
    __syncthreads();
    const int warps = rows * static_cast<int>(blockDim.x) / 32, lane = thread % 32;
    if (thread / 32 < warps)  // whole warps
      for (int which = thread / 32; which < groups; which += warps) {
        float total = 0.0f;
        for (int at_row = lane / g.width, at = lane % g.width; at_row < rows;) {
          total += partial[at_row * g.tile + which * g.width + at];
          at_row += 32 / g.width;
          at += 32 % g.width;
          if (at >= g.width) {
            at -= g.width;
            ++at_row;
          }
        }
        total = warp_sum(total);
        if (lane == 0) share[which] = total;
      }
    cluster.sync();
    float total = 0.0f;
    if (thread < groups)
      for (unsigned block = 0; block < cluster.num_blocks(); ++block)
        total += *cluster.map_shared_rank(&share[thread], block);
    return total / (static_cast<float>(g.spatial) * static_cast<float>(g.width));
  };
  const float shift = sum_groups(shares[0], [](int, float value) { return value; });
  if (thread < groups) shifts[thread] = shift;
  __syncthreads();
  float about[Vector];
#pragma unroll
  for (int i = 0; i < Vector; ++i) about[i] = shifts[group[i]];
  const float variance =
      sum_groups(shares[1], [&](int i, float value) { return (value - about[i]) * (value - about[i]); });
  if (thread < groups) {
    const float inverse = 1.0f / ::sqrtf(variance + g.epsilon);
    inverses[thread] = inverse;
    if (blockIdx.x == 0) {
      const index_t at = blockIdx.z * (g.c / g.width) + tile_channel / g.width + thread;
      mean[at] = widen(x[image + thread * g.width]) + shift;
      inverse_deviation[at] = inverse;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Vector; ++i) scale[i] *= inverses[group[i]];
  for (int pixel = row; pixel < pixels; pixel += rows) {
    float value[Vector];
    load_numbers<Vector>(kept + pixel * g.tile + column, value);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const float z = ((value[i] - origin[i]) - about[i]) * scale[i] + offset[i];
      value[i] = g.silu ? z * sigmoid_number(z) : z;
    }
    store_numbers<Vector>(y + image + (first + pixel) * g.c + column, value);
  }
  cluster.sync();  // the others have read this block's shares
#endif
}

/// Runs the kernel where it can; else false.
template <class T>
bool group_norm_in_clusters(Context<Cuda>& context, const kernel::GroupNormShape& s, const T* x, const T* weight,
                            const T* bias, T* y, compute_t<T>* mean, compute_t<T>* inverse_deviation) {
  if constexpr (std::is_same_v<compute_t<T>, float>) {
    constexpr int vector = static_cast<int>(16 / sizeof(T)), largest = 100 << 10;  // two blocks on a multiprocessor
    constexpr index_t number_bytes = static_cast<index_t>(sizeof(T));
    const auto kernel = group_norm_cluster_kernel<vector, T>;
    if (s.c % vector != 0 || s.spatial > (index_t{1} << 24) || s.n > 65535 ||
        common_alignment(x, weight, bias, y) < 16 || !has_hopper_body(kernel))
      return false;
    const index_t width = s.c / s.groups, unit = std::lcm(static_cast<index_t>(vector), width);
    if (s.c % unit != 0) return false;
    index_t tile = unit, blocks = 1;
    const auto pixels_of_block = [&] { return (s.spatial + blocks - 1) / blocks; };
    const auto shared_bytes = [&] {
      const index_t rows = norm_cluster_threads / (tile / vector);
      return pixels_of_block() * tile * number_bytes + rows * tile * static_cast<index_t>(sizeof(float));
    };
    /// As many blocks as shared memory needs and as fill the device, up to what every device can cluster.
    const auto fits = [&] {
      if (tile / vector > norm_cluster_threads || tile / width > norm_cluster_groups || s.c / tile > 65535)
        return false;
      for (blocks = 1; blocks < 8; blocks *= 2)
        if (shared_bytes() <= largest && s.n * (s.c / tile) * blocks >= 2 * context.multiprocessors()) return true;
      return shared_bytes() <= largest;
    };
    // Rows of at least 128 bytes, in whole sectors of 32, where there are such that fit.
    for (tile = unit; tile < s.c; tile += unit)
      if (s.c % tile == 0 && tile * number_bytes >= 128 && tile * number_bytes % 32 == 0) break;
    if (!fits()) {
      tile = unit;
      if (!fits()) return false;
    }

    const int bytes = static_cast<int>(shared_bytes()), columns = static_cast<int>(tile / vector);
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "group_norm_cluster_kernel");
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t launch{};
    launch.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(s.c / tile), static_cast<unsigned>(s.n));
    launch.blockDim = dim3(static_cast<unsigned>(columns), static_cast<unsigned>(norm_cluster_threads / columns));
    launch.dynamicSmemBytes = static_cast<std::size_t>(bytes);
    launch.stream = context.stream();
    launch.attrs = &cluster;
    launch.numAttrs = 1;
    const GroupNormCluster sizes{
        s.spatial, s.c,   static_cast<int>(tile), static_cast<int>(width), static_cast<int>(pixels_of_block()),
        s.epsilon, s.silu};
    cuda_check(cudaLaunchKernelEx(&launch, kernel, sizes, x, weight, bias, y, mean, inverse_deviation),
               "group_norm_cluster_kernel");
    context.check_launch("group_norm_cluster_kernel");
    return true;
  } else {
    return false;
  }
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
