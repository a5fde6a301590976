// SPDX-License-Identifier: MIT
// Philox normals of CUDA devices: a thread makes one block of four; the bits are those of every other device.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/base/philox.hpp>
#include <lpo/kernel/random.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

template <class T>
__global__ void __launch_bounds__(256) random_normal_kernel(index_t count, T* x, float mean, float deviation, std::uint64_t seed,
                                                            std::uint32_t operation, std::uint32_t step, std::uint64_t first) {
  const std::uint64_t block = first / 4 + static_cast<std::uint64_t>(blockIdx.x) * 256u + threadIdx.x;
  float four[4];
  philox_normal4(seed, block, operation, step, four);
#pragma unroll
  for (unsigned lane = 0; lane < 4; ++lane) {
    const auto at = static_cast<index_t>(block * 4 + lane - first);
    if (at >= 0 && at < count) x[at] = narrow<T>(static_cast<compute_t<T>>(::fmaf(deviation, four[lane], mean)));
  }
}

}  // namespace detail

namespace kernel {

template <>
struct RandomNormal<Cuda> {
  template <class T>
  static void fill(Context<Cuda>& context, index_t count, T* x, float mean, float deviation, std::uint64_t seed,
                   std::uint32_t operation, std::uint32_t step, std::uint64_t first) {
    if (count <= 0) return;
    const index_t blocks = (static_cast<index_t>(first % 4) + count + 3) / 4;
    context.launch("random_normal_kernel", {detail::blocks_for(blocks, 256), 256}, detail::random_normal_kernel<T>, count, x, mean,
                   deviation, seed, operation, step, first);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
