// SPDX-License-Identifier: MIT
// The device that a program computes on: the GPU where its sources are compiled as CUDA, the CPU otherwise.
#pragma once

#if defined(__CUDACC__)
#include <lpo/cuda.cuh>
#else
#include <lpo/lpo.hpp>
#endif

namespace examples {

#if defined(__CUDACC__)
using Device = lpo::Cuda;
/// `threads` is for the CPU.
inline lpo::Context<Device> make_context(int) { return lpo::Context<Device>(); }
#else
using Device = lpo::Cpu;
/// Of `threads` threads; 0 takes all.
inline lpo::Context<Device> make_context(int threads) { return lpo::Context<Device>(threads); }
#endif

}  // namespace examples
