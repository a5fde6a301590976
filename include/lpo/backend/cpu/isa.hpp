// SPDX-License-Identifier: MIT
// Instruction sets that inner loops are compiled for beside the translation unit's own, and the choice when they run.
//
// A loop `body<bytes>` over vectors of that many bytes is written once, always inlined, and called by one function per
// instruction set that carries LPO_TARGET_256 or LPO_TARGET_512: that function's target decides what the body becomes.
// Vectors wider than the translation unit's own must not be arguments or results of a function, inlined or not.
#pragma once

#include <lpo/base/config.hpp>

#if LPO_HOST_PASS
#if defined(__x86_64__) && defined(__linux__) && !defined(LPO_ONE_ISA)
#  include <cpuid.h>
#  include <sys/syscall.h>
#  include <unistd.h>
/// Of loops around pairs of bfloat16 (bfloat16_tile.hpp).
#  define LPO_TARGET_PAIRS __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")))
#endif
#if defined(__x86_64__) && !defined(__AVX512F__) && !defined(LPO_ONE_ISA)
#  define LPO_TARGET_512 __attribute__((target("avx512f,avx512vl,avx2,fma")))
#endif
#if defined(__x86_64__) && !(defined(__AVX2__) && defined(__FMA__)) && !defined(LPO_ONE_ISA)
#  define LPO_TARGET_256 __attribute__((target("avx2,fma")))
#endif

// The last statement of every function with such a target. Without it the upper halves of the registers stay in use, and
// on Intel every SSE instruction of the program's own code then depends on them. The compilers add it by themselves, but g++
// only from -O2 on. (g++ declares the builtin with the first such function, so without any its name is unknown.)
#if defined(LPO_TARGET_512) && !defined(__AVX__)
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

#if defined(LPO_TARGET_PAIRS)
/// Whether the machine multiplies pairs of bfloat16 in 512-bit registers.
inline bool machine_has_avx512_bfloat16() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}

/// Whether the machine has tile registers for bfloat16 and Linux lets this process use them, which it has to ask for.
inline bool machine_has_amx_bfloat16() {
  static const bool allowed = [] {
    if (!machine_has_avx512_bfloat16()) return false;
    unsigned a = 0, b = 0, c = 0, d = 0, enabled = 0, enabled_high = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, tile_state = 3u << 17;
    if ((d & amx_bf16) == 0 || (d & amx_tile) == 0) return false;
    asm volatile("xgetbv" : "=a"(enabled), "=d"(enabled_high) : "c"(0));
    if ((enabled & tile_state) != tile_state) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return allowed;
}
#endif

/// Whether products of bfloat16 run on pairs here, in tile registers or not.
inline bool machine_multiplies_pairs() {
#if defined(LPO_TARGET_PAIRS)
  return machine_has_avx512_bfloat16();
#else
  return false;
#endif
}

/// Whether they do in tile registers, at many times the rate of floats.
inline bool machine_multiplies_tiles() {
#if defined(LPO_TARGET_PAIRS)
  return machine_has_amx_bfloat16();
#else
  return false;
#endif
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
