// SPDX-License-Identifier: MIT
// Copies from device memory to shared memory that pass the registers by, and groups of them to wait for.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Starts a copy of Bytes (4 to 16) to shared memory; where `there` is false, zeros are written and nothing is read.
template <int Bytes>
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool there) {
  const int size = there ? Bytes : 0;
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(Bytes), "r"(size)
                 : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Starts a copy of 16 bytes.
__device__ __forceinline__ void copy_16_async(void* to, const void* from) {
#if defined(__CUDACC__)
  copy_async<16>(shared_address(to), from, true);
#else
  emulated_cuda::copy_later(to, from, 16);
#endif
}
/// Closes a group of copies; wait_for_groups<Open> waits for all but the last Open groups of this thread.
__device__ __forceinline__ void close_copy_group() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulated_cuda::close_copy_group();
#endif
}
template <int Open>
__device__ __forceinline__ void wait_for_groups() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(Open) : "memory");
#else
  emulated_cuda::wait_for_copy_groups(Open);
#endif
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
