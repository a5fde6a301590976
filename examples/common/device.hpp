// SPDX-License-Identifier: MIT
// The device that a program computes on: the GPU where its sources are compiled as CUDA, the CPU otherwise.
#pragma once

#if defined(__CUDACC__)
#include <lpo/cuda.cuh>
#else
#include <lpo/lpo.hpp>
#endif

#include <memory>

#include <lpo/nn/keep_packed.hpp>

#include "device_options.hpp"

namespace examples {

#if defined(__CUDACC__)
using Device = lpo::Cuda;
inline lpo::CudaOptions cuda_options(const DeviceOptions& o, int device = 0) {
  using Use = lpo::CudnnUse;
  return {.device = device,
          .time_products = o.time_products,
          .cudnn = o.cudnn == "fastest" ? Use::fastest : o.cudnn == "same_bits" ? Use::same_bits : Use::never};
}
/// `threads` is for the CPU.
inline lpo::Context<Device> make_context(int, const DeviceOptions& o = {}) {
  return lpo::Context<Device>(cuda_options(o));
}
#else
using Device = lpo::Cpu;
/// Of `threads` threads; 0 takes all.
inline lpo::Context<Device> make_context(int threads, const DeviceOptions& = {}) {
  return lpo::Context<Device>(threads);
}
#endif

/// While the result lives, `store`'s frozen weights must not change, and stay packed where the options ask for it.
template <class T>
std::unique_ptr<lpo::KeepPacked<T, Device>> keep_packed(lpo::Context<Device>& context, lpo::ParameterStore<T, Device>& store,
                                                        const DeviceOptions& o) {
  return o.keep_packed ? std::make_unique<lpo::KeepPacked<T, Device>>(context, store) : nullptr;
}

}  // namespace examples
