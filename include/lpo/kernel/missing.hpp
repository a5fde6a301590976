// SPDX-License-Identifier: MIT
// The sentence a program gets when it uses a device whose backend was not included.
#pragma once

#include <lpo/base/device.hpp>
#include <lpo/tensor/context.hpp>

/// First member of every primary kernel template: one readable error instead of an undefined symbol.
#define LPO_MISSING_KERNEL(Device, name)                                                                 \
  static_assert(!LPO_HOST_PASS || ::lpo::detail::always_false<Device>,                                       \
                "lpo kernel: no " name " for this device; include <lpo/lpo.hpp> for Cpu, or "            \
                "<lpo/cuda.cuh> in a CUDA (.cu) file for Cuda")
