// SPDX-License-Identifier: MIT
// The loop whose speed is the FMA peak: multiply-adds that never leave the registers, for the machine's instruction set.
#pragma once

#include <algorithm>
#include <cstring>
#include <iterator>

#include <lpo/backend/cpu/bfloat16_tile.hpp>
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

#if defined(LPO_TARGET_PAIRS)
LPO_TARGET_PAIRS __attribute__((noinline)) inline void multiply_pairs_512(lpo::index_t steps) {
  lpo::detail::PairSums sum[24] = {};
  lpo::detail::PairVector factor = {};
  asm volatile("" : "+v"(factor));
  for (lpo::index_t step = 0; step < steps; ++step) {
LPO_UNROLL(24)
    for (int i = 0; i < 24; ++i) {
      lpo::detail::PairSums one = sum[i];
      asm("vdpbf16ps %1, %1, %0" : "+v"(one) : "v"(factor));
      sum[i] = one;
    }
  }
LPO_UNROLL(24)
  for (int i = 0; i < 24; ++i) asm volatile("" : : "v"(sum[i]));
}

inline void multiply_pairs_amx(lpo::index_t steps) {
  const lpo::detail::TileConfiguration configuration;
  asm volatile("ldtilecfg %0" : : "m"(configuration));
  for (lpo::index_t step = 0; step < steps; ++step)
    asm volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n\ttdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
        "tdpbf16ps %tmm6, %tmm5, %tmm2\n\ttdpbf16ps %tmm7, %tmm5, %tmm3");
  asm volatile("tilerelease");
}
#endif

/// The same with the instructions on pairs of bfloat16 that the products use here, or in float where there are none.
inline double multiply_and_add_bfloat16(lpo::index_t steps) {
#if defined(LPO_TARGET_PAIRS)
  const auto& list = lpo::detail::pair_tiles();
  if (list.count > 0 && list.tiles[0] == &lpo::detail::pair_tiles_amx) {
    multiply_pairs_amx(steps);
    return 4.0 * 2 * 16 * 16 * 32 * static_cast<double>(steps);
  }
  if (list.count > 0) {
    multiply_pairs_512(steps);
    return 24.0 * 2 * 32 * static_cast<double>(steps);
  }
#endif
  return multiply_and_add(steps);
}

}  // namespace bench
