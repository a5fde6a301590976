// SPDX-License-Identifier: MIT
// The loop whose speed is the FMA peak: multiply-adds that never leave the registers, for the machine's instruction set.
#pragma once

#include <lpo/backend/cpu/product_tile.hpp>

namespace bench {

/// `steps` times 24 (12) chains of multiply-adds that never leave the registers, in registers of `bytes`.
template <int bytes>
LPO_ALWAYS_INLINE void multiply_and_add(lpo::index_t steps) {
  typedef float V __attribute__((vector_size(bytes)));
  constexpr int chains = bytes == 64 ? 24 : 12;
  V sum[chains];
  V factor = V{} + 0.999f, term = factor;
#pragma GCC unroll 24
  for (int i = 0; i < chains; ++i) {
    sum[i] = term + static_cast<float>(i);
    asm volatile("" : "+v"(sum[i]));
  }
  asm volatile("" : "+v"(factor), "+v"(term));
  for (lpo::index_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i) sum[i] = sum[i] * factor + term;
  }
#pragma GCC unroll 24
  for (int i = 0; i < chains; ++i) asm volatile("" : "+v"(sum[i]));
}

#if defined(__x86_64__)
__attribute__((noinline, target("avx512f"))) inline void multiply_and_add_512(lpo::index_t steps) {
  multiply_and_add<64>(steps);
}
__attribute__((noinline, target("avx2,fma"))) inline void multiply_and_add_256(lpo::index_t steps) {
  multiply_and_add<32>(steps);
}
#endif
__attribute__((noinline)) inline void multiply_and_add_128(lpo::index_t steps) { multiply_and_add<16>(steps); }

/// `steps` turns of that loop with the instruction set that the products use on this machine; returns its operations.
inline double multiply_and_add(lpo::index_t steps) {
  const int lanes = lpo::detail::tile_kernel<float>().lanes;
#if defined(__x86_64__)
  if (lanes == 16) multiply_and_add_512(steps);
  if (lanes == 8) multiply_and_add_256(steps);
#endif
  if (lanes == 4) multiply_and_add_128(steps);
  return 2.0 * (lanes == 16 ? 24 : 12) * lanes * static_cast<double>(steps);
}

}  // namespace bench
