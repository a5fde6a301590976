// SPDX-License-Identifier: MIT
// Loads and stores of storage types in device code, one number or 16 bytes at a time, and launch arithmetic.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <lpo/backend/cuda/context.cuh>
#include <lpo/base/scalar.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

// Conversions by the instructions of the device; same bits as base/scalar.hpp, but for the payload of NaN.
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(bfloat16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }
__device__ __forceinline__ float widen(half value) { return __half2float(__ushort_as_half(value.bits)); }

template <class T>
__device__ __forceinline__ T narrow(compute_t<T> value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    T stored;
    stored.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    return stored;
  } else if constexpr (std::is_same_v<T, half>) {
    T stored;
    stored.bits = __half_as_ushort(__float2half_rn(value));
    return stored;
  } else {
    return value;
  }
}

/// One number as the type of the arithmetic; `Number` may be wider than compute_t<T>.
template <class T>
__device__ __forceinline__ compute_t<T> load_number(const T* p) {
  return widen(*p);
}
template <class T, class Number>
__device__ __forceinline__ void store_number(T* p, Number value) {
  *p = narrow<T>(static_cast<compute_t<T>>(value));
}

/// Count numbers side by side, aligned so that they move in accesses of up to 16 bytes.
template <class T, int Count>
struct alignas(sizeof(T) * Count < 16 ? sizeof(T) * Count : 16) NumberVector {
  T at[Count];
};

template <int Count, class T, class Number>
__device__ __forceinline__ void load_numbers(const T* p, Number (&values)[Count]) {
  const auto loaded = *reinterpret_cast<const NumberVector<T, Count>*>(p);
#pragma unroll
  for (int i = 0; i < Count; ++i) values[i] = static_cast<Number>(widen(loaded.at[i]));
}
template <int Count, class T, class Number>
__device__ __forceinline__ void store_numbers(T* p, const Number (&values)[Count]) {
  NumberVector<T, Count> stored;
#pragma unroll
  for (int i = 0; i < Count; ++i) stored.at[i] = narrow<T>(static_cast<compute_t<T>>(values[i]));
  *reinterpret_cast<NumberVector<T, Count>*>(p) = stored;
}

/// Count numbers in registers as they are stored. Pairs of 16-bit numbers are words, which the compiler would otherwise spread
/// over twice the registers.
template <class T, int Count>
struct StoredNumbers {
  static constexpr bool in_pairs = sizeof(T) == 2 && Count % 2 == 0;
  NumberVector<std::conditional_t<in_pairs, std::uint32_t, T>, in_pairs ? Count / 2 : Count> stored;

  __device__ __forceinline__ void fetch(const T* p) { stored = *reinterpret_cast<const decltype(stored)*>(p); }
  /// A single number is widened to all of `values`.
  template <int Vector, class Number>
  __device__ __forceinline__ void widen_to(Number (&values)[Vector]) const {
#pragma unroll
    for (int i = 0; i < Vector; ++i) values[i] = static_cast<Number>(widen(number(Count == 1 ? 0 : i)));
  }

 private:
  __device__ __forceinline__ T number(int i) const {
    if constexpr (in_pairs) {
      T value;
      value.bits = static_cast<std::uint16_t>(stored.at[i / 2] >> (i % 2 * 16));
      return value;
    } else {
      return stored.at[i];
    }
  }
};

/// 2^value to 2 units in the last place, and 1 / value to 1; results and arguments too small for a normal number are zero.
__device__ __forceinline__ float exp2_approximate(float value) {
#if defined(__CUDACC__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
#else
  return ::exp2f(value);
#endif
}
__device__ __forceinline__ float reciprocal_approximate(float value) {
#if defined(__CUDACC__)
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(value));
  return reciprocal;
#else
  return 1.0f / value;
#endif
}

/// tanh(value) with a relative error of at most 2^-11, and mostly far less.
__device__ __forceinline__ float tanh_approximate(float value) {
#if defined(__CUDACC__)
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#else
  return ::tanhf(value);
#endif
}

/// The address of shared memory as its instructions take it.
__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/// Sum over a warp; every lane gets it, from a fixed tree.
template <class Number>
__device__ __forceinline__ Number warp_sum(Number value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}
template <class Number>
__device__ __forceinline__ Number warp_max(Number value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    const Number other = __shfl_xor_sync(0xffffffffu, value, lane);
    value = value < other ? other : value;
  }
  return value;
}

/// Sum over a block of Threads threads; every thread gets it. `shared` holds Threads / 32 numbers and may be used again
/// after the next barrier.
template <int Threads, class Number>
__device__ __forceinline__ Number block_sum(Number value, Number* shared) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  Number total{};
#pragma unroll
  for (int warp = 0; warp < Threads / 32; ++warp) total += shared[warp];
  return total;
}

/// Maximum over a block, as block_sum.
template <int Threads, class Number>
__device__ __forceinline__ Number block_max(Number value, Number* shared) {
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  Number largest = shared[0];
#pragma unroll
  for (int warp = 1; warp < Threads / 32; ++warp) largest = largest < shared[warp] ? shared[warp] : largest;
  return largest;
}

/// Division of 32-bit numbers below 2^31 by one divisor: a multiplication and a shift (Granlund and Montgomery 1994).
struct FastDivisor {
  unsigned divisor = 1, multiplier = 0, shift = 0;

  FastDivisor() = default;
  explicit FastDivisor(unsigned d) : divisor(d) {
    while (shift < 31 && (1u << shift) < d) ++shift;
    const std::uint64_t numerator = (std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift) - d);
    multiplier = static_cast<unsigned>(numerator / d + 1);
  }
  __device__ __forceinline__ unsigned quotient(unsigned n) const { return (__umulhi(n, multiplier) + n) >> shift; }
};

/// The largest power of two, at most 16, that divides every address.
template <class... Pointers>
int common_alignment(Pointers... addresses) {
  const std::uintptr_t bits = (std::uintptr_t{16} | ... | reinterpret_cast<std::uintptr_t>(addresses));
  return static_cast<int>(bits & (~bits + 1));
}

/// Blocks that cover `count` elements with `per_block` each.
inline unsigned blocks_for(index_t count, index_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
