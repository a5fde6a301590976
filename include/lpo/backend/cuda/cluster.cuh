// SPDX-License-Identifier: MIT
// Clusters of Hopper GPUs: neighbouring blocks that run at the same time and reach each other's shared memory.
#pragma once

#include <lpo/backend/cuda/launch.cuh>
#include <lpo/backend/cuda/numbers.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// What every device with clusters can run.
inline constexpr int most_cluster_blocks = 8;

/// Whether this program's code for the device has clusters; elsewhere the functions below do nothing.
template <class Kernel>
bool has_clusters(Kernel* kernel) {
#if defined(__CUDACC__)
  return has_hopper_code(kernel);
#else
  return kernel != nullptr;
#endif
}

/// Says that this thread has come here, and nothing about what it wrote.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if !defined(__CUDACC__)
  emulated_cuda::cluster_arrive();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}
/// What this thread wrote before, in any block's shared memory, is there for those that waited.
__device__ __forceinline__ void cluster_arrive() {
#if !defined(__CUDACC__)
  emulated_cuda::cluster_arrive();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
/// Waits until all threads of the cluster that still run have arrived. Calls alternate with cluster_arrive().
__device__ __forceinline__ void cluster_wait() {
#if !defined(__CUDACC__)
  emulated_cuda::cluster_wait();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

/// The place of this block's shared memory `place`, in block `rank` of the cluster. That block has begun, as a barrier of the
/// cluster shows, and does not end before the last access.
template <class T>
__device__ __forceinline__ T* in_cluster_block(T* place, unsigned rank) {
#if !defined(__CUDACC__)
  return emulated_cuda::in_cluster_block(place, rank);
#elif __CUDA_ARCH__ >= 900
  std::uint64_t there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<std::uint64_t>(place)), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return place;
#endif
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
