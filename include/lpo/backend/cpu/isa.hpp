// SPDX-License-Identifier: MIT
// Instruction sets that inner loops are compiled for beside the translation unit's own, and the choice when they run.
//
// A loop `body<bytes>` over vectors of that many bytes is written once, always inlined, and called by one function per
// instruction set that carries LPO_TARGET_256 or LPO_TARGET_512: that function's target decides what the body becomes.
// Vectors wider than the translation unit's own must not be arguments or results of a function, inlined or not.
#pragma once

#include <lpo/base/config.hpp>

#if LPO_HOST_PASS
#if defined(__x86_64__) && !defined(__AVX512F__)
#  define LPO_TARGET_512 __attribute__((target("avx512f,avx512vl,avx2,fma")))
#endif
#if defined(__x86_64__) && !(defined(__AVX2__) && defined(__FMA__))
#  define LPO_TARGET_256 __attribute__((target("avx2,fma")))
#endif

// The last statement of every function with such a target. Without it the upper halves of the registers stay in use, and
// on Intel every SSE instruction of the program's own code then waits for them: tests ran tens of times slower. The
// compilers add it by themselves, but g++ only from -O2 on.
#if defined(__x86_64__) && !defined(__AVX__)
#  define LPO_LEAVE_WIDE_REGISTERS() __builtin_ia32_vzeroupper()
#else
#  define LPO_LEAVE_WIDE_REGISTERS() static_cast<void>(0)
#endif

namespace lpo::inline LPO_ABI {
namespace detail {

/// Bytes of the widest registers, of those that inner loops are compiled for, that this machine has.
inline int machine_simd_bytes() {
  static const int bytes = [] {
#if defined(LPO_TARGET_512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return 64;
#endif
#if defined(LPO_TARGET_256)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 32;
#endif
    return LPO_SIMD_BYTES;
  }();
  return bytes;
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
