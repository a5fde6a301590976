// SPDX-License-Identifier: MIT
// Packs: explicit SIMD vectors of float (compiler vector extensions) with loads and stores for every storage type.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__F16C__)
#  include <immintrin.h>
#endif

#include <lpo/base/scalar.hpp>

namespace lpo::inline LPO_ABI {

/// One register of floats: 16 lanes under AVX-512, 8 under AVX2, 4 otherwise.
typedef float Pack __attribute__((vector_size(LPO_SIMD_BYTES)));
typedef std::int32_t PackMask __attribute__((vector_size(LPO_SIMD_BYTES)));
inline constexpr int pack_width = LPO_SIMD_BYTES / static_cast<int>(sizeof(float));

namespace detail {

template <class V>
struct LaneTraits {
  using scalar = V;
  static constexpr int width = 1;
};
template <>
struct LaneTraits<Pack> {
  using scalar = float;
  static constexpr int width = pack_width;
};

typedef std::uint16_t PackBits16 __attribute__((vector_size(LPO_SIMD_BYTES / 2)));
typedef std::uint32_t PackBits32 __attribute__((vector_size(LPO_SIMD_BYTES)));

LPO_ALWAYS_INLINE Pack load_pack(const float* p) {
  Pack value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
LPO_ALWAYS_INLINE void store_pack(float* p, Pack value) { std::memcpy(p, &value, sizeof(value)); }

// g++ 12 splits these conversions into halves and permutations, which costs a third of a bfloat16 statement.
LPO_ALWAYS_INLINE Pack load_pack(const bfloat16* p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return std::bit_cast<Pack>(std::bit_cast<PackBits32>(wide) << 16);
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return std::bit_cast<Pack>(std::bit_cast<PackBits32>(wide) << 16);
#else
  PackBits16 bits;
  std::memcpy(&bits, p, sizeof(bits));
  return std::bit_cast<Pack>(__builtin_convertvector(bits, PackBits32) << 16);
#endif
}
LPO_ALWAYS_INLINE void store_pack(bfloat16* p, Pack value) {
  const PackBits32 bits = std::bit_cast<PackBits32>(value);
  const PackBits32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const PackBits32 quiet = (bits >> 16) | 0x40u;
  const PackBits32 chosen = value == value ? rounded : quiet;
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, std::bit_cast<__m512i>(chosen)));
#else
  const PackBits16 narrow = __builtin_convertvector(chosen, PackBits16);
  std::memcpy(p, &narrow, sizeof(narrow));
#endif
}

LPO_ALWAYS_INLINE Pack load_pack(const half* p) {
#if defined(__AVX512F__)
  return std::bit_cast<Pack>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__) && defined(__AVX2__)
  return std::bit_cast<Pack>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Pack value;
  for (int lane = 0; lane < pack_width; ++lane) value[lane] = static_cast<float>(p[lane]);
  return value;
#endif
}
LPO_ALWAYS_INLINE void store_pack(half* p, Pack value) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, std::bit_cast<__m512>(value), 0));
#elif defined(__F16C__) && defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(std::bit_cast<__m256>(value), 0));
#else
  for (int lane = 0; lane < pack_width; ++lane) p[lane] = half(value[lane]);
#endif
}

/// Loads one `V` (pack or scalar) from storage of type T.
template <class V, class T>
LPO_ALWAYS_INLINE V load_lanes(const T* p) {
  if constexpr (LaneTraits<V>::width == 1)
    return static_cast<V>(static_cast<compute_t<T>>(*p));
  else if constexpr (std::is_same_v<V, Pack>)
    return load_pack(p);
  else
    return V::load(p);  // WidePack
}

template <class V, class T>
LPO_ALWAYS_INLINE void store_lanes(T* p, V value) {
  if constexpr (LaneTraits<V>::width == 1)
    *p = static_cast<T>(static_cast<compute_t<T>>(value));
  else if constexpr (std::is_same_v<V, Pack>)
    store_pack(p, value);
  else
    value.store(p);
}

template <class V>
LPO_HOST_DEVICE LPO_ALWAYS_INLINE V broadcast_lanes(typename LaneTraits<V>::scalar value) {
  if constexpr (LaneTraits<V>::width == 1)
    return value;
  else
    return value - V{};  // a pure broadcast; adding to zero would cost an addition and lose the sign of -0
}

/// Sum over lanes, in lane order pairs (a fixed tree, so the same bits every time).
LPO_ALWAYS_INLINE float sum_lanes(Pack value) {
  float lane[pack_width];
  std::memcpy(lane, &value, sizeof(value));
  for (int step = pack_width / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
}
LPO_ALWAYS_INLINE float sum_lanes(float value) { return value; }
LPO_ALWAYS_INLINE double sum_lanes(double value) { return value; }

LPO_ALWAYS_INLINE float max_lanes(Pack value) {
  float lane[pack_width];
  std::memcpy(lane, &value, sizeof(value));
  for (int step = pack_width / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] = lane[i] < lane[i + step] ? lane[i + step] : lane[i];
  return lane[0];
}

// Lane-wise choice, minimum, maximum and square root. The ternary keeps NaN in the first argument.
LPO_ALWAYS_INLINE Pack select(PackMask mask, Pack yes, Pack no) { return mask ? yes : no; }
LPO_HOST_DEVICE LPO_ALWAYS_INLINE float select(bool mask, float yes, float no) { return mask ? yes : no; }
LPO_HOST_DEVICE LPO_ALWAYS_INLINE double select(bool mask, double yes, double no) { return mask ? yes : no; }

LPO_ALWAYS_INLINE Pack square_root(Pack value) {
#if defined(__AVX512F__)
  return std::bit_cast<Pack>(_mm512_maskz_sqrt_ps(0xffff, std::bit_cast<__m512>(value)));
#elif defined(__AVX2__)
  return std::bit_cast<Pack>(_mm256_sqrt_ps(std::bit_cast<__m256>(value)));
#else
  for (int lane = 0; lane < pack_width; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
#endif
}
LPO_HOST_DEVICE LPO_ALWAYS_INLINE float square_root(float value) { return std::sqrt(value); }
LPO_HOST_DEVICE LPO_ALWAYS_INLINE double square_root(double value) { return std::sqrt(value); }

/// Lane i of the result is lane Lane[i] of a, or, from pack_width on, of b. clang and g++ differ in the built-in; nvcc's front
/// end garbles clang's spelling with g++.
template <int... Lane>
LPO_ALWAYS_INLINE Pack shuffle_lanes(Pack a, Pack b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lane...);
#else
  return __builtin_shuffle(a, b, PackMask{Lane...});
#endif
}

/// Reinterprets float lanes as integers and back, for exponent arithmetic.
LPO_ALWAYS_INLINE PackMask to_bits(Pack value) { return std::bit_cast<PackMask>(value); }
LPO_HOST_DEVICE LPO_ALWAYS_INLINE std::int32_t to_bits(float value) { return __builtin_bit_cast(std::int32_t, value); }
LPO_ALWAYS_INLINE Pack from_bits(PackMask bits) { return std::bit_cast<Pack>(bits); }
LPO_HOST_DEVICE LPO_ALWAYS_INLINE float from_bits(std::int32_t bits) { return __builtin_bit_cast(float, bits); }
LPO_ALWAYS_INLINE Pack int_to_float(PackMask value) { return __builtin_convertvector(value, Pack); }
LPO_HOST_DEVICE LPO_ALWAYS_INLINE float int_to_float(std::int32_t value) { return static_cast<float>(value); }

}  // namespace detail

}  // namespace lpo::inline LPO_ABI
