// SPDX-License-Identifier: MIT
// Philox normals of the CPU: whole blocks of four, threaded; the bits are those of every other device.
#pragma once

#include <algorithm>
#include <cmath>

#include <lpo/base/philox.hpp>
#include <lpo/kernel/random.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct RandomNormal<Cpu> {
  template <class T>
  static void fill(Context<Cpu>& context, index_t count, T* x, float mean, float deviation, std::uint64_t seed,
                   std::uint32_t operation, std::uint32_t step, std::uint64_t first) {
    // Not vectorised: these bits must come out alike everywhere, which explicit scalar fma guarantees.
    context.executor().parallel_for(count, 4096, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end;) {
        const std::uint64_t number = first + static_cast<std::uint64_t>(i);
        float four[4];
        philox_normal4(seed, number / 4, operation, step, four);
        for (auto lane = static_cast<int>(number % 4); lane < 4 && i < end; ++lane, ++i)
          x[i] = static_cast<T>(std::fma(deviation, four[lane], mean));
      }
    });
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
