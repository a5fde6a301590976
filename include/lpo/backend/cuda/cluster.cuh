// SPDX-License-Identifier: MIT
// Clusters of Hopper GPUs: neighbouring blocks that run at the same time and reach each other's shared memory.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// The most blocks of a cluster of Kernel that any program of this project asks for: 16 where the device runs such clusters of
/// blocks that fill a multiprocessor, else the 8 of every device with clusters; 1 where the program's code for the device has no
/// clusters, and the functions below do nothing. Found for the first device that is asked.
template <auto* Kernel>
int most_cluster_blocks() {
#if defined(__CUDACC__)
  static const int most = [] {
    int device = 0, shared = 0, active = 0;
    cudaFuncAttributes attributes{};
    const bool asked = cudaFuncGetAttributes(&attributes, Kernel) == cudaSuccess && cudaGetDevice(&device) == cudaSuccess &&
                       cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess;
    if (!asked || attributes.ptxVersion < 90 || attributes.binaryVersion < 90) {
      cudaGetLastError();  // no code at all for this device: the launch that follows reports it
      return 1;
    }
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = 16;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = 16, config.blockDim = 32, config.dynamicSmemBytes = static_cast<std::size_t>(shared);
    config.attrs = &cluster, config.numAttrs = 1;
    const bool runs = cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) == cudaSuccess &&
                      cudaFuncSetAttribute(Kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
                      cudaOccupancyMaxActiveClusters(&active, Kernel, &config) == cudaSuccess && active > 0;
    cudaGetLastError();
    return runs ? 16 : 8;
  }();
  return most;
#else
  return 16;
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
/// Waits until all threads of the cluster that still run have arrived. Calls alternate with those that arrive.
__device__ __forceinline__ void cluster_wait() {
#if !defined(__CUDACC__)
  emulated_cuda::cluster_wait();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// An inbox: pairs of numbers that the blocks of a cluster send each other once. All threads of all blocks call, in this order,
// open_inbox, cluster_wait and wait_for_inbox; with one block in the cluster, the pair is written and wait_for_inbox is a barrier.

/// `inbox` is 8 bytes of shared memory at the same place in all blocks; `pairs` come from each of `blocks`.
__device__ __forceinline__ void open_inbox([[maybe_unused]] std::uint64_t* inbox, int blocks, [[maybe_unused]] int pairs) {
  if (blocks == 1) return;
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    const unsigned at = shared_address(inbox);
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(blocks * pairs * 16) : "memory");
  }
#endif
  cluster_arrive_relaxed();
}
/// Writes two numbers to `place` of block `rank`, whose inbox is open.
__device__ __forceinline__ void send_pair(double* place, [[maybe_unused]] std::uint64_t* inbox, int blocks, int rank, double first,
                                          double second) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
  if (blocks > 1) {
    unsigned to, there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(place)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(inbox)), "r"(rank));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f64 [%0], {%1, %2}, [%3];" ::"r"(to), "d"(first),
                 "d"(second), "r"(there)
                 : "memory");
    return;
  }
#elif !defined(__CUDACC__)
  if (blocks > 1) place = emulated_cuda::in_cluster_block(place, static_cast<unsigned>(rank));
#endif
  place[0] = first;
  place[1] = second;
}
/// Everything that was sent to this block is there.
__device__ __forceinline__ void wait_for_inbox([[maybe_unused]] std::uint64_t* inbox, int blocks) {
  if (blocks == 1) return __syncthreads();
#if !defined(__CUDACC__)
  emulated_cuda::cluster_arrive();
  emulated_cuda::cluster_wait();
#elif __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .pred there;\n again:\n mbarrier.try_wait.parity.shared::cta.b64 there, [%0], 0;\n @!there bra again;\n}" ::"r"(
          shared_address(inbox))
      : "memory");
#endif
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
