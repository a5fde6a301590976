// SPDX-License-Identifier: MIT
// The device that a program computes on: the GPU where its sources are compiled as CUDA, the CPU otherwise.
#pragma once

#if defined(__CUDACC__)
#include <lpo/cuda.cuh>
#else
#include <lpo/lpo.hpp>
#endif

#include <algorithm>
#include <cstddef>
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

/// Bytes of one frozen weight of `stored` bytes in one packed form, if the options keep it: 16 bits are widened unless
/// products multiply them as they are.
inline double packed_number_bytes([[maybe_unused]] std::size_t stored, [[maybe_unused]] bool is_bfloat16,
                                  [[maybe_unused]] const DeviceOptions& o) {
#if defined(__CUDACC__)
  return 0;
#else
  if (!o.keep_packed) return 0;
  return is_bfloat16 && lpo::detail::multiplies_pairs<lpo::bfloat16>() ? 2.0 : static_cast<double>(std::max(stored, sizeof(float)));
#endif
}

/// While the result lives, `store`'s frozen weights must not change, and stay packed where the options ask for it.
template <class T>
std::unique_ptr<lpo::KeepPacked<T, Device>> keep_packed(lpo::Context<Device>& context, lpo::ParameterStore<T, Device>& store,
                                                        const DeviceOptions& o) {
  return o.keep_packed ? std::make_unique<lpo::KeepPacked<T, Device>>(context, store) : nullptr;
}

}  // namespace examples
