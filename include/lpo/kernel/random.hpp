// SPDX-License-Identifier: MIT
// Contract of filling memory with Philox normals: the same bits on every device and for any number of threads.
#pragma once

#include <cstdint>

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <class Device>
struct RandomNormal {
  LPO_MISSING_KERNEL(Device, "random_normal");

  /// x[i] = mean + deviation * z_i; z_i is number `first + i` of the sequence (seed, operation, step).
  template <class T>
  static void fill(Context<Device>&, index_t count, T* x, float mean, float deviation, std::uint64_t seed,
                   std::uint32_t operation, std::uint32_t step, std::uint64_t first);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
