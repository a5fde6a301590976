// expect: lpo Context: this device has no backend here; include <lpo/cuda.cuh>
// SPDX-License-Identifier: MIT
// A CUDA context in a program that includes no CUDA backend.
#include <lpo/tensor/context.hpp>

lpo::Context<lpo::Cuda> context;
