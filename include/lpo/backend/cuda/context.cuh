// SPDX-License-Identifier: MIT
// Context<Cuda>: one device's stream, memory and cuBLASLt handle, owned in one place.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include <cublasLt.h>

#include <lpo/backend/cuda/kernel_times.cuh>
#include <lpo/backend/cuda/launch.cuh>
#include <lpo/backend/cuda/memory.cuh>
#include <lpo/backend/cuda/named_types.cuh>
#include <lpo/backend/cuda/product_plans.cuh>
#include <lpo/tensor/context.hpp>

namespace lpo::inline LPO_ABI {

/// When a convolution goes to cuDNN, in programs that link it (lpo::cudnn). Choices by time are made at a shape's first use
/// outside of a captured graph and kept by the context.
enum class CudnnUse {
  never,
  same_bits,         ///< where it is faster and gives the bits of lpo's own kernel: the choice shows in no result
  fastest,           ///< where it is faster: what two runs choose, and so their rounding, may differ
  wherever_possible  ///< for tests and benchmarks
};

struct CudaOptions {
  int device = 0;           ///< ordinal, as nvidia-smi counts
  bool tf32 = false;        ///< float products on tensor cores with 10-bit mantissas: faster, relative error about 3e-4
  bool synchronize = false; ///< wait after every kernel, so that an error names the kernel that caused it
  bool time_kernels = false;  ///< keep what kernel_times() reports; costs an event per launch
  bool time_products = true;  ///< the algorithm of a large 16-bit product is chosen by time, among those with the same bits
  CudnnUse cudnn = CudnnUse::never;  ///< the default until a GPU has run the others
  bool graphs = true;  ///< RepeatedWork is captured and replayed; not where synchronize or time_kernels is on
};

/// Owns a CUDA device's stream, arenas, pools and library handles. All work of a context runs in the order in which it was
/// called; the calls return before it is done. One context per thread of control: it is not for concurrent use.
template <>
class Context<Cuda> {
 public:
  using Arena = BasicArena<detail::DeviceBlock>;
  using Pool = BasicPool<detail::DeviceBlock>;

  explicit Context(const CudaOptions& options = {}) : options_(options) {
    int count = 0;
    detail::cuda_check(cudaGetDeviceCount(&count), "Context<Cuda>");
    if (options.device < 0 || options.device >= count)
      throw DeviceError(message("[Context<Cuda>] device ", options.device, " was asked for, this machine has ", count,
                                "; devices count from 0"));
    detail::cuda_check(cudaSetDevice(options.device), "Context<Cuda>");
    detail::cuda_check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, options.device),
                       "Context<Cuda>");
    detail::cuda_check(cudaDeviceGetAttribute(&shared_memory_, cudaDevAttrMaxSharedMemoryPerBlockOptin, options.device),
                       "Context<Cuda>");
    int major = 0, minor = 0;
    detail::cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, options.device), "Context<Cuda>");
    detail::cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, options.device), "Context<Cuda>");
    if (major < 8)
      throw DeviceError(message("[Context<Cuda>] compute capability ", major, ".", minor,
                                " is too old; lpo needs 8.0 (Ampere) or newer"));
    detail::cuda_check(cudaStreamCreate(&stream_), "Context<Cuda>");
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() {
    cudaStreamSynchronize(stream_);
    libraries_.clear();
    cudaStreamDestroy(stream_);
  }

  const CudaOptions& options() const { return options_; }
  cudaStream_t stream() const { return stream_; }
  /// Plans and workspace of the matrix products.
  detail::ProductPlans& products() { return products_; }
  /// What a library that only some programs link keeps for this context: made from the stream on first use.
  template <class Library>
  Library& library() {
    static char name;  // its address tells libraries apart
    for (const auto& [known, library] : libraries_)
      if (known == &name) return *static_cast<Library*>(library.get());
    return *static_cast<Library*>(libraries_.emplace_back(&name, std::make_shared<Library>(stream_)).second.get());
  }
  int multiprocessors() const { return multiprocessors_; }
  /// Bytes of shared memory that one block can ask for.
  int shared_memory() const { return shared_memory_; }

  Arena& activations() { return activations_; }
  Arena& scratch() { return scratch_; }
  Pool& gradients() { return gradients_; }

  /// Complete on return: what was called before is done too.
  void copy_to_host(void* host, const void* device, std::size_t bytes) {
    if (bytes == 0) return;
    if (captured_ != nullptr)
      throw ValueError("[CudaGraph] the captured work reads numbers from the device; keep losses and metrics out of it");
    detail::cuda_check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "copy to host");
    synchronize();
  }
  /// `host` can be reused on return; the device sees the bytes in the order of its work.
  void copy_from_host(void* device, const void* host, std::size_t bytes) {
    if (bytes == 0) return;
    if (captured_ != nullptr) host = captured_->keep(host, bytes);
    detail::cuda_check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_), "copy from host");
  }
  void copy(void* to, const void* from, std::size_t bytes) {
    if (bytes == 0) return;
    detail::cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "device copy");
  }
  void fill_zero(void* device, std::size_t bytes) {
    if (bytes == 0) return;
    detail::cuda_check(cudaMemsetAsync(device, 0, bytes, stream_), "device fill");
  }

  /// Waits for everything that was called.
  void synchronize() { detail::cuda_check(cudaStreamSynchronize(stream_), "Context<Cuda>::synchronize"); }

  /// Launches `kernel(arguments...)` on this context's stream; `name` is its name in errors and kernel_times(), and outlives
  /// the context.
  template <class... Parameters, class... Arguments>
  void launch(const char* name, const LaunchShape& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
    detail::launch_kernel(name, shape, stream_, options_.synchronize, kernel, arguments...);
    if (options_.time_kernels) times_.mark(name, stream_);
  }

  /// For the launches of other libraries: reports a failure, and marks its time.
  void check_launch(const char* name) {
    detail::expect_launched(name, stream_, options_.synchronize);
    if (options_.time_kernels) times_.mark(name, stream_);
  }

  /// check_launch() under a name that tells more, which `describe()` makes where times are kept.
  template <class Describe>
  void check_launch(const char* name, const Describe& describe) {
    check_launch(options_.time_kernels ? times_.kept_name(describe()) : name);
  }

  /// While a graph is captured, host bytes that are copied to the device are kept here; null otherwise.
  void capture_into(detail::PinnedCopies* copies) { captured_ = copies; }
  bool capturing() const { return captured_ != nullptr; }
  /// How often captured graphs were launched: whether steps are replayed.
  std::size_t graph_launches() const { return graph_launches_; }
  void count_graph_launch() { ++graph_launches_; }

  /// Device time by kernel, of products by shape, since the last call, the longest first; empty unless CudaOptions::time_kernels. Waits.
  std::vector<KernelTime> kernel_times() { return times_.take(stream_); }

  std::size_t reserved_bytes() const {
    return activations_.reserved_bytes() + scratch_.reserved_bytes() + gradients_.reserved_bytes() + products_.reserved_bytes();
  }

 private:
  CudaOptions options_;
  int multiprocessors_ = 0, shared_memory_ = 0;
  cudaStream_t stream_ = nullptr;
  detail::ProductPlans products_;
  std::vector<std::pair<const void*, std::shared_ptr<void>>> libraries_;
  detail::KernelTimes times_;
  detail::PinnedCopies* captured_ = nullptr;
  std::size_t graph_launches_ = 0;
  // First blocks of 64 MiB: cudaMalloc costs a millisecond.
  Arena activations_{std::size_t{1} << 26};
  Arena scratch_{std::size_t{1} << 26};
  Pool gradients_;
};

}  // namespace lpo::inline LPO_ABI
