// SPDX-License-Identifier: MIT
// The loop whose speed is the FMA peak: multiply-adds that never leave the registers, for the machine's instruction set.
#pragma once

#include <algorithm>
#include <cstring>
#include <iterator>

#include <lpo/backend/cpu/product_tile.hpp>

namespace bench {

/// `steps` times 24 (12) chains of multiply-adds that never leave the registers, in registers of `bytes`. `numbers`, what
/// they start from and end in, keeps the compiler from knowing the result.
template <int bytes>
LPO_ALWAYS_INLINE void multiply_and_add(lpo::index_t steps, float* numbers) {
  typedef float V __attribute__((vector_size(bytes)));
  constexpr int chains = bytes == 64 ? 24 : 12, lanes = bytes / static_cast<int>(sizeof(float));
  V sum[chains];
  const V factor = V{} + numbers[0], term = V{} + numbers[1];
LPO_UNROLL(24)
  for (int i = 0; i < chains; ++i) std::memcpy(&sum[i], numbers + i * lanes, sizeof(V));
  for (lpo::index_t step = 0; step < steps; ++step) {
LPO_UNROLL(24)
    for (int i = 0; i < chains; ++i) sum[i] = sum[i] * factor + term;
  }
LPO_UNROLL(24)
  for (int i = 0; i < chains; ++i) std::memcpy(numbers + i * lanes, &sum[i], sizeof(V));
}

#if defined(__x86_64__)
__attribute__((noinline, target("avx512f"))) inline void multiply_and_add_512(lpo::index_t steps, float* numbers) {
  multiply_and_add<64>(steps, numbers);
}
__attribute__((noinline, target("avx2,fma"))) inline void multiply_and_add_256(lpo::index_t steps, float* numbers) {
  multiply_and_add<32>(steps, numbers);
}
#endif
__attribute__((noinline)) inline void multiply_and_add_128(lpo::index_t steps, float* numbers) {
  multiply_and_add<16>(steps, numbers);
}

/// `steps` turns of that loop with the instruction set that the products use on this machine; returns its operations.
inline double multiply_and_add(lpo::index_t steps) {
  const int lanes = lpo::detail::tile_kernel<float>().lanes;
  float numbers[24 * 16];
  std::fill(std::begin(numbers), std::end(numbers), 0.999f);
  asm volatile("" : : "r"(numbers) : "memory");  // they are read and written by somebody else, as far as anyone knows
#if defined(__x86_64__)
  if (lanes == 16) multiply_and_add_512(steps, numbers);
  if (lanes == 8) multiply_and_add_256(steps, numbers);
#endif
  if (lanes == 4) multiply_and_add_128(steps, numbers);
  asm volatile("" : : "r"(numbers) : "memory");
  return 2.0 * (lanes == 16 ? 24 : 12) * lanes * static_cast<double>(steps);
}

}  // namespace bench
