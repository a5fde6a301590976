// SPDX-License-Identifier: MIT
// Launches of kernels: the launch syntax of nvcc in one place, and the error that names the kernel.
#pragma once

#include <cstddef>

#include <lpo/backend/cuda/memory.cuh>

namespace lpo::inline LPO_ABI {

/// Blocks, threads of a block, and bytes of shared memory that the kernel declares as `extern`.
struct LaunchShape {
  dim3 blocks, threads;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;  ///< neighbours along x that run together (cluster.cuh); divides blocks.x
};

namespace detail {

/// In a kernel: the bytes of shared memory that its launch asked for, aligned to 16.
__device__ __forceinline__ unsigned char* launched_shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char launched_shared[];
  return launched_shared;
#else
  return emulated_cuda::launched_shared_memory();
#endif
}

/// Throws a DeviceError with `name` when the launch before failed and, with `synchronize`, when the work on the stream did.
inline void expect_launched(const char* name, cudaStream_t stream, bool synchronize) {
  cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess && synchronize) status = cudaStreamSynchronize(stream);
  if (status != cudaSuccess) cuda_check(status, name);
}

/// Launches `kernel(arguments...)`. Throws a DeviceError with the kernel's `name` when the launch fails and, with
/// `synchronize`, when the kernel does. Compiled by another compiler than nvcc, it hands the blocks to the emulator of the
/// tests, whose cuda_runtime.h stands in for the toolkit's.
template <class... Parameters, class... Arguments>
void launch_kernel(const char* name, const LaunchShape& shape, cudaStream_t stream, bool synchronize,
                   void (*kernel)(Parameters...), const Arguments&... arguments) {
#if defined(__CUDACC__)
  // 48 KiB, with the kernel's static part, need permission. Asked per call: a kernel has one address in each translation unit,
  // so a flag would have to be one of each unit too, and the call costs little against a launch.
  if (shape.shared_bytes > (std::size_t{32} << 10))
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)), name);
  if (shape.cluster > 1) {
    if (shape.cluster > 8) cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = shape.cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = shape.blocks, config.blockDim = shape.threads, config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream, config.attrs = &cluster, config.numAttrs = 1;
    cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
  } else {
    kernel<<<shape.blocks, shape.threads, shape.shared_bytes, stream>>>(arguments...);
  }
#else
  emulated_cuda::run_blocks(shape.blocks, shape.threads, shape.shared_bytes, shape.cluster, [&] { kernel(arguments...); });
#endif
  expect_launched(name, stream, synchronize);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
