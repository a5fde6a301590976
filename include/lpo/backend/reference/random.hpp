// SPDX-License-Identifier: MIT
// Philox normals of the Reference device: every element draws its own block, which defines what all devices return.
#pragma once

#include <cmath>

#include <lpo/base/philox.hpp>
#include <lpo/kernel/random.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct RandomNormal<Reference> {
  template <class T>
  static void fill(Context<Reference>&, index_t count, T* x, float mean, float deviation, std::uint64_t seed,
                   std::uint32_t operation, std::uint32_t step, std::uint64_t first) {
    for (index_t i = 0; i < count; ++i) {
      const std::uint64_t number = first + static_cast<std::uint64_t>(i);
      float four[4];
      philox_normal4(seed, number / 4, operation, step, four);
      // An explicit fma, as in philox.hpp: the bits must not depend on what a compiler contracts.
      x[i] = static_cast<T>(std::fma(deviation, four[number % 4], mean));
    }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
