// SPDX-License-Identifier: MIT
// Version, instruction-set tag and the inline namespace that keeps differently compiled copies of lpo apart.
#pragma once

#if __cplusplus < 202002L
#  error "lpo needs C++20: compile with -std=c++20, or link lpo::lpo in CMake; the errors below follow from this"
#endif
#if defined(LPO_SINGLE_INCLUDE)
#  error "lpo: single_include/lpo/lpo.hpp is already included; use it or the headers of the modular tree, not both"
#endif

#define LPO_VERSION_MAJOR 0
#define LPO_VERSION_MINOR 1
#define LPO_VERSION_PATCH 0

#define LPO_VERSION_STRING "0.1.0"

// Inline code here depends on the vector width. Two translation units with different -march would otherwise share one
// mangled name and the linker would keep either body, so the width is part of every symbol.
#if defined(__AVX512F__)
#  define LPO_ISA avx512
#  define LPO_SIMD_BYTES 64
#elif defined(__AVX2__)
#  define LPO_ISA avx2
#  define LPO_SIMD_BYTES 32
#else
#  define LPO_ISA generic
#  define LPO_SIMD_BYTES 16
#endif

#define LPO_CONCAT_(a, b) a##b
#define LPO_CONCAT(a, b) LPO_CONCAT_(a, b)

/// Every lpo header opens `namespace lpo::inline LPO_ABI { … }`.
///
/// Define LPO_ONE_ISA, for a whole program, to compile inner loops for the instruction set of the translation unit alone
/// and not for wider ones that the machine may turn out to have: less to compile, and slower unless -march says what there is.
/// Define LPO_HAS_CUDNN, for a whole program too, where CUDA's convolutions may go to cuDNN; the target lpo::cudnn does.
#if defined(LPO_HAS_CUDNN)
#  define LPO_ABI_LIBRARIES v0_1_cudnn_
#else
#  define LPO_ABI_LIBRARIES v0_1_
#endif
#if defined(LPO_ONE_ISA)
#  define LPO_ABI LPO_CONCAT(LPO_CONCAT(LPO_ABI_LIBRARIES, only_), LPO_ISA)
#else
#  define LPO_ABI LPO_CONCAT(LPO_ABI_LIBRARIES, LPO_ISA)
#endif

// The only place that asks whether nvcc compiles this translation unit.
//
// nvcc reads a .cu file once for the device and once for the host. Packs of the host are no types of the device, so the
// device's pass sees only the contracts that backend/cpu implements.
#if defined(__CUDA_ARCH__)
#  define LPO_HOST_PASS 0
#else
#  define LPO_HOST_PASS 1
#endif

#define LPO_PRAGMA_(text) _Pragma(#text)

#if defined(__CUDACC__)
#  define LPO_HOST_DEVICE __host__ __device__
// Templates for both sides call what their arguments provide: host functions with packs, device functions in kernels. nvcc
// warns of the host ones wherever it instantiates such a template, also where no kernel needs it.
#  define LPO_HOST_DEVICE_TEMPLATES_BEGIN _Pragma("nv_diagnostic push") _Pragma("nv_diag_suppress 20011,20014")
#  define LPO_HOST_DEVICE_TEMPLATES_END _Pragma("nv_diagnostic pop")
#  define LPO_UNROLL(count)  // nvcc's front end does not know the host compiler's
#else
#  define LPO_UNROLL(count) LPO_PRAGMA_(GCC unroll count)
#  define LPO_HOST_DEVICE
#  define LPO_HOST_DEVICE_TEMPLATES_BEGIN
#  define LPO_HOST_DEVICE_TEMPLATES_END
#endif

#if defined(__GNUC__) || defined(__clang__)
#  define LPO_COLD __attribute__((cold, noinline))
#  define LPO_ALWAYS_INLINE inline __attribute__((always_inline))
#else
#  define LPO_COLD
#  define LPO_ALWAYS_INLINE inline
#endif
