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
  bool early = false;    ///< may start before the kernel before it has ended: see let_next_kernel_start
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

// A kernel whose launch is `early` starts once all blocks of the kernel before it have let it start, or ended. It then runs
// beside that kernel until it waits for it, which it does before it ends: work that is launched normally after it expects
// both to be done. On Hopper and newer; elsewhere, and in other launches, both functions do nothing.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Until the kernels before have ended, and what they wrote is there.
__device__ __forceinline__ void wait_for_kernels_before() {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if defined(__CUDACC__)
/// Whether this program's code for the device is that of Hopper or newer.
template <class Kernel>
bool has_hopper_code(Kernel* kernel) {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
    cudaGetLastError();  // no code at all for this device: the launch that follows reports it
    return false;
  }
  return attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
}
#endif

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
  const bool early = shape.early && has_hopper_code(kernel);
  if (shape.cluster > 1 || early) {
    cudaLaunchAttribute attributes[2]{};
    unsigned count = 0;
    if (shape.cluster > 1) {
      if (shape.cluster > 8) cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count].val.clusterDim.x = shape.cluster;
      attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
      ++count;
    }
    if (early) {
      attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[count].val.programmaticStreamSerializationAllowed = 1;
      ++count;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = shape.blocks, config.blockDim = shape.threads, config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream, config.attrs = attributes, config.numAttrs = count;
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
