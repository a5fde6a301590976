// SPDX-License-Identifier: MIT
// Bulk tensor copies of Hopper GPUs (TMA): maps of tensors in device memory, barriers that count bytes, and the copies.
#pragma once

#include <cstdint>

#include <cuda.h>

#include <lpo/backend/cuda/numbers.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// A tensor of up to four axes, innermost first, and the box of it that one copy moves: `box[i]` elements along axis i,
/// `step[i]` apart. Elements outside the tensor arrive as zeros, so the box may start anywhere, below zero too; copies
/// to the tensor leave them out.
struct TensorBoxes {
  int rank = 0;
  index_t extent[4] = {1, 1, 1, 1};
  int box[4] = {1, 1, 1, 1};
  int step[4] = {1, 1, 1, 1};
  index_t stride[4] = {};  ///< elements between neighbours along an axis; 0: the axes before it are dense
};

/// The driver's encoder, which the runtime looks up: the program needs no link against libcuda.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* symbol = nullptr;
  cudaDriverEntryPointQueryResult found{};
  cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault, &found),
             "tensor map");
  if (found != cudaDriverEntryPointSuccess)
    throw DeviceError("[tensor map] the driver has no cuTensorMapEncodeTiled; install a driver for CUDA 12 or newer");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(symbol);
}

/// The map of a tensor of 16-bit numbers whose boxes are 64 numbers wide: rows of 128 bytes in shared memory, whose
/// 16-byte pieces are exchanged within groups of eight rows (128-byte swizzle). `data` and all strides are multiples
/// of 16 bytes.
template <class T>
CUtensorMap tensor_map(const T* data, const TensorBoxes& t) {
  static_assert(sizeof(T) == 2);
  static const auto encode = tensor_map_encoder();
  cuuint64_t extents[4], strides[3];
  cuuint32_t boxes[4], steps[4];
  index_t stride = sizeof(T);
  for (int i = 0; i < t.rank; ++i) {
    extents[i] = static_cast<cuuint64_t>(t.extent[i]);
    boxes[i] = static_cast<cuuint32_t>((t.box[i] - 1) * t.step[i] + 1);
    steps[i] = static_cast<cuuint32_t>(t.step[i]);
    stride *= t.extent[i];
    if (i + 1 < t.rank && t.stride[i + 1] > 0) stride = t.stride[i + 1] * static_cast<index_t>(sizeof(T));
    if (i + 1 < t.rank) strides[i] = static_cast<cuuint64_t>(stride);
  }
  CUtensorMap map;
  const auto type = std::is_same_v<T, bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult status = encode(&map, type, static_cast<cuuint32_t>(t.rank), const_cast<T*>(data), extents, strides,
                                 boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw DeviceError(message("[tensor map] the driver refused a map of rank ", t.rank, ", innermost extents ",
                              t.extent[0], " x ", t.extent[1], " (status ", static_cast<int>(status), ")"));
  return map;
}

// Barriers in shared memory and copies that complete on them; sm_90 code only.

__device__ __forceinline__ void barrier_init(std::uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
/// After the inits, before the threads' barrier: the copy engine sees them.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives, and makes the phase wait for `bytes` of copies.
__device__ __forceinline__ void barrier_expect(std::uint64_t* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
/// Waits for the end of the phase of this parity. A fresh barrier is in phase 0; the phase of parity 1 counts as over.
__device__ __forceinline__ void barrier_wait(std::uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, std::uint64_t* barrier, int x0, int x1,
                                         int x2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2)
      : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, std::uint64_t* barrier, int x0, int x1,
                                         int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}

/// A copy without a map: `bytes` and both addresses are multiples of 16.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, unsigned bytes, std::uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

/// Copies a box from shared memory to the tensor, where it is inside. Before it, each thread that wrote the box calls
/// copy_source_fence() and meets the copying one at a barrier; that one calls wait_for_copied_source() in the end.
__device__ __forceinline__ void copy_box_back(const CUtensorMap& map, const void* from, int x0, int x1, int x2,
                                              int x3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}
__device__ __forceinline__ void copy_source_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// The shared memory that this thread's copies read may be used again, or end; but for those since the last Later calls.
template <int Later = 0>
__device__ __forceinline__ void wait_for_copied_source() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read %0;" ::"n"(Later) : "memory");
}

/// Whether this program's code for the device holds `kernel`'s body, where only sm_90a code has one: its barriers, in
/// static shared memory, are the sign.
template <class Kernel>
bool has_hopper_body(Kernel* kernel) {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
    cudaGetLastError();  // no code at all for this device: the launch that follows reports it
    return false;
  }
  return attributes.sharedSizeBytes > 0;
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
