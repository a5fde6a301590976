// SPDX-License-Identifier: MIT
// Memory of a CUDA device: owning blocks, transfers that are complete on return, and the error that names what failed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

#include <lpo/base/device.hpp>
#include <lpo/tensor/memory.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// What to do where the device's memory is full, as the end of an error.
inline constexpr const char* memory_advice =
    "use a smaller batch (micro_batch_size, max_rows), gradient checkpointing or 16-bit storage, or end what else runs on the "
    "device (nvidia-smi)";

/// Throws a DeviceError unless `status` is success; `operation` says what was tried.
inline void cuda_check(cudaError_t status, const char* operation) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here; the next check starts clean
  if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver)
    throw DeviceError(message("[", operation, "] no usable CUDA device: ", cudaGetErrorString(status),
                              "; check nvidia-smi, or use the Cpu device"));
  if (status == cudaErrorNoKernelImageForDevice)
    throw DeviceError(message("[", operation, "] this program holds no code for the device's architecture; compile it with "
                              "-gencode for that architecture (CMAKE_CUDA_ARCHITECTURES)"));
  if (status == cudaErrorMemoryAllocation)  // not by a block of ours: a context, a graph or a library's code had no room
    throw DeviceError(message("[", operation, "] no room in the device's memory; ", memory_advice));
  throw DeviceError(message("[", operation, "] ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")"));
}

/// An owning, uninitialised block of device memory, aligned to 256 bytes.
class DeviceBlock {
 public:
  DeviceBlock() = default;
  explicit DeviceBlock(std::size_t bytes) : bytes_(aligned_bytes(std::max<std::size_t>(bytes, 1))) {
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, bytes_);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      std::size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      throw DeviceMemoryError(
          message("[cuda memory] ", mebibytes(bytes_), " MiB were asked for, but of the device's ", mebibytes(total),
                  " MiB ", mebibytes(total - free), " are in use and ", mebibytes(free),
                  " free; ", memory_advice));
    }
    cuda_check(status, "cuda memory");
    data_ = static_cast<std::byte*>(data);
  }
  static DeviceBlock zeros(std::size_t bytes) {
    DeviceBlock block(bytes);
    cuda_check(cudaMemset(block.data_, 0, block.bytes_), "cuda fill");
    return block;
  }
  DeviceBlock(DeviceBlock&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBlock& operator=(DeviceBlock&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBlock() { cudaFree(data_); }  // waits for the work that uses it

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  static index_t mebibytes(std::size_t bytes) { return static_cast<index_t>(bytes >> 20); }

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Copies of host bytes that a captured graph reads at every replay.
class PinnedCopies {
 public:
  PinnedCopies() = default;
  PinnedCopies(const PinnedCopies&) = delete;
  PinnedCopies& operator=(const PinnedCopies&) = delete;
  ~PinnedCopies() {
    for (void* copy : copies_) cudaFreeHost(copy);
  }

  const void* keep(const void* bytes, std::size_t size) {
    void* copy = nullptr;
    cuda_check(cudaMallocHost(&copy, size), "CudaGraph");
    copies_.push_back(copy);
    std::memcpy(copy, bytes, size);
    return copy;
  }

 private:
  std::vector<void*> copies_;
};

}  // namespace detail

/// Tensors without a context use the default stream, which waits for every context's stream and is waited for by it.
template <>
struct DeviceMemory<Cuda> {
  using Block = detail::DeviceBlock;

  static void copy_from_host(void* device, const void* host, std::size_t bytes) { transfer(device, host, bytes); }
  static void copy_to_host(void* host, const void* device, std::size_t bytes) { transfer(host, device, bytes); }
  static void fill_zero(void* device, std::size_t bytes) {
    if (bytes != 0) detail::cuda_check(cudaMemset(device, 0, bytes), "cuda fill");
  }

 private:
  /// The direction follows from the addresses, so copies within the device work too.
  static void transfer(void* to, const void* from, std::size_t bytes) {
    if (bytes == 0) return;
    detail::cuda_check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cuda copy");
    detail::cuda_check(cudaStreamSynchronize(nullptr), "cuda copy");
  }
};

}  // namespace lpo::inline LPO_ABI
