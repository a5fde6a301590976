// SPDX-License-Identifier: MIT
// Context<Device>: what computation on a device needs — memory and, on hosts, the executor — owned in one place.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include <lpo/base/device.hpp>
#include <lpo/base/executor.hpp>
#include <lpo/tensor/memory.hpp>
#include <lpo/tensor/packed_weights.hpp>

namespace lpo::inline LPO_ABI {

/// Owns a device's arenas, pools and executor. One context per thread of control: it is not for concurrent use.
template <class Device>
class Context {
  static_assert(is_host_device<Device>,
                "lpo Context: this device has no backend here; include <lpo/cuda.cuh> and compile this file as CUDA (.cu)");

 public:
  /// `threads` = 0 takes every hardware thread.
  explicit Context(int threads = 0) : executor_(threads) {}

  Executor& executor() { return executor_; }
  /// Activations: rewound by backward and by inference scopes.
  Arena& activations() { return activations_; }
  /// Short-lived kernel workspace: rewound at the end of each kernel.
  Arena& scratch() { return scratch_; }
  /// Gradients of activations.
  Pool& gradients() { return gradients_; }
  /// Packed forms of weights that do not change.
  PackedWeights& packed_weights() { return packed_weights_; }

  /// Host memory is directly addressable, so these are plain copies; device contexts transfer, in the order of their work.
  void copy_to_host(void* host, const void* device, std::size_t bytes) {
    DeviceMemory<Device>::copy_to_host(host, device, bytes);
  }
  void copy_from_host(void* device, const void* host, std::size_t bytes) {
    DeviceMemory<Device>::copy_from_host(device, host, bytes);
  }
  /// Within the device.
  void copy(void* to, const void* from, std::size_t bytes) { DeviceMemory<Device>::copy_from_host(to, from, bytes); }
  void fill_zero(void* device, std::size_t bytes) { DeviceMemory<Device>::fill_zero(device, bytes); }

  /// Bytes this context holds mapped, all arenas and pools together.
  std::size_t reserved_bytes() const {
    return activations_.reserved_bytes() + scratch_.reserved_bytes() + gradients_.reserved_bytes() +
           packed_weights_.reserved_bytes();
  }

 private:
  Executor executor_;
  Arena activations_;
  Arena scratch_;
  Pool gradients_;
  PackedWeights packed_weights_;
};

/// Kernel workspace that is given back at the end of the C++ scope.
template <class Device>
class Scratch {
 public:
  using ScratchArena = std::remove_reference_t<decltype(std::declval<Context<Device>&>().scratch())>;

  explicit Scratch(Context<Device>& context) : arena_(context.scratch()), mark_(arena_.mark()) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { arena_.rewind(mark_); }

  template <class T>
  T* allocate(index_t count) {
    return reinterpret_cast<T*>(arena_.allocate(static_cast<std::size_t>(count) * sizeof(T)));
  }

 private:
  ScratchArena& arena_;
  ArenaMark mark_;
};

}  // namespace lpo::inline LPO_ABI
