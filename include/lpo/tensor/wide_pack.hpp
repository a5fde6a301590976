// SPDX-License-Identifier: MIT
// WidePack: a pack wider than the translation unit's own, for loops that are compiled for several instruction sets.
//
// It is a struct because vectors wider than the unit's registers must not be arguments or results of functions
// (isa.hpp); where everything is inlined into a function with the right target, its members are registers. Only the
// compiler's vector operations occur here: an intrinsic could not be inlined before the target is known.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include <lpo/tensor/pack.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

template <class S, int bytes>
struct VectorOf {
  typedef S type __attribute__((vector_size(bytes), aligned(4)));
};

/// 32-bit integers beside a WidePack: its bits, or what a comparison gives (all ones or zero).
template <int bytes>
struct WideBits {
  using Vector = typename VectorOf<std::int32_t, bytes>::type;
  Vector v;

#define LPO_WIDE_OPERATOR(symbol)                                                                          \
  friend LPO_ALWAYS_INLINE WideBits operator symbol(WideBits a, WideBits b) { return {a.v symbol b.v}; }   \
  friend LPO_ALWAYS_INLINE WideBits operator symbol(WideBits a, std::int32_t b) { return {a.v symbol b}; } \
  friend LPO_ALWAYS_INLINE WideBits operator symbol(std::int32_t a, WideBits b) { return {a symbol b.v}; }
  LPO_WIDE_OPERATOR(+)
  LPO_WIDE_OPERATOR(-)
  LPO_WIDE_OPERATOR(&)
  LPO_WIDE_OPERATOR(|)
  LPO_WIDE_OPERATOR(<<)
  LPO_WIDE_OPERATOR(>>)
#undef LPO_WIDE_OPERATOR
};

template <int bytes>
struct WidePack {
  using Vector = typename VectorOf<float, bytes>::type;
  using Words = typename VectorOf<std::uint32_t, bytes>::type;
  using HalfWords = typename VectorOf<std::uint16_t, bytes / 2>::type;
  using Mask = WideBits<bytes>;
  static constexpr int lanes = bytes / static_cast<int>(sizeof(float));
  Vector v;

  static LPO_ALWAYS_INLINE WidePack load(const float* p) {
    WidePack value;
    std::memcpy(&value.v, p, sizeof(Vector));
    return value;
  }
  static LPO_ALWAYS_INLINE WidePack load(const bfloat16* p) {
    Words words;
    widen(p, words);
    return {__builtin_bit_cast(Vector, words << 16)};
  }
  /// The exponent is moved by a product with 2^112, which is exact for subnormal numbers too.
  static LPO_ALWAYS_INLINE WidePack load(const half* p) {
    Words words;
    widen(p, words);
    const Words magnitude = (words & 0x7fffu) << 13;
    const Words number = __builtin_bit_cast(Words, __builtin_bit_cast(Vector, magnitude) * 0x1p112f);
    const Words special = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : number;
    return {__builtin_bit_cast(Vector, special | ((words & 0x8000u) << 16))};
  }

  LPO_ALWAYS_INLINE void store(float* p) const { std::memcpy(p, &v, sizeof(Vector)); }
  LPO_ALWAYS_INLINE void store(bfloat16* p) const {
    const Words bits = __builtin_bit_cast(Words, v);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    store_narrow(p, v == v ? rounded : (bits >> 16) | 0x40u);
  }
  /// To nearest, ties to even. Below 2^-14 the sum with 1/2 leaves the subnormal number in its last bits.
  LPO_ALWAYS_INLINE void store(half* p) const {
    const Words bits = __builtin_bit_cast(Words, v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const Words small = __builtin_bit_cast(Words, __builtin_bit_cast(Vector, magnitude) + 0.5f) - 0x3f000000u;
    const Words normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    const Words finite = magnitude < 0x38800000u ? small : normal;
    const Words large = magnitude > 0x7f800000u ? ((magnitude >> 13) & 0x03ffu) | 0x7e00u : Words{} + 0x7c00u;
    store_narrow(p, (magnitude >= 0x477ff000u ? large : finite) | sign);
  }

  LPO_ALWAYS_INLINE float operator[](int lane) const { return v[lane]; }
  LPO_ALWAYS_INLINE WidePack operator-() const { return {-v}; }

#define LPO_WIDE_OPERATOR(symbol)                                                                        \
  friend LPO_ALWAYS_INLINE WidePack operator symbol(WidePack a, WidePack b) { return {a.v symbol b.v}; } \
  friend LPO_ALWAYS_INLINE WidePack operator symbol(WidePack a, float b) { return {a.v symbol b}; }      \
  friend LPO_ALWAYS_INLINE WidePack operator symbol(float a, WidePack b) { return {a symbol b.v}; }      \
  LPO_ALWAYS_INLINE WidePack& operator symbol##=(WidePack b) {                                           \
    v = v symbol b.v;                                                                                    \
    return *this;                                                                                        \
  }                                                                                                      \
  LPO_ALWAYS_INLINE WidePack& operator symbol##=(float b) {                                              \
    v = v symbol b;                                                                                      \
    return *this;                                                                                        \
  }
  LPO_WIDE_OPERATOR(+)
  LPO_WIDE_OPERATOR(-)
  LPO_WIDE_OPERATOR(*)
  LPO_WIDE_OPERATOR(/)
#undef LPO_WIDE_OPERATOR
#define LPO_WIDE_COMPARISON(symbol) \
  friend LPO_ALWAYS_INLINE Mask operator symbol(WidePack a, WidePack b) { return {a.v symbol b.v}; }
  LPO_WIDE_COMPARISON(<)
  LPO_WIDE_COMPARISON(<=)
  LPO_WIDE_COMPARISON(>)
  LPO_WIDE_COMPARISON(>=)
  LPO_WIDE_COMPARISON(==)
#undef LPO_WIDE_COMPARISON

 private:
  template <class T>
  static LPO_ALWAYS_INLINE void widen(const T* p, Words& words) {
    HalfWords bits;
    std::memcpy(&bits, p, sizeof(bits));
    words = __builtin_convertvector(bits, Words);
  }
  template <class T>
  static LPO_ALWAYS_INLINE void store_narrow(T* p, const Words& words) {
    const HalfWords bits = __builtin_convertvector(words, HalfWords);
    std::memcpy(static_cast<void*>(p), &bits, sizeof(bits));
  }
};

template <int bytes>
struct LaneTraits<WidePack<bytes>> {
  using scalar = float;
  static constexpr int width = WidePack<bytes>::lanes;
};

template <int bytes>
LPO_ALWAYS_INLINE WidePack<bytes> select(WideBits<bytes> mask, WidePack<bytes> yes, WidePack<bytes> no) {
  return {mask.v ? yes.v : no.v};
}
template <int bytes>
LPO_ALWAYS_INLINE WidePack<bytes> square_root(WidePack<bytes> value) {
  for (int lane = 0; lane < WidePack<bytes>::lanes; ++lane) value.v[lane] = std::sqrt(value.v[lane]);
  return value;
}
template <int bytes>
LPO_ALWAYS_INLINE WideBits<bytes> to_bits(WidePack<bytes> value) {
  return {__builtin_bit_cast(typename WideBits<bytes>::Vector, value.v)};
}
template <int bytes>
LPO_ALWAYS_INLINE WidePack<bytes> from_bits(WideBits<bytes> bits) {
  return {__builtin_bit_cast(typename WidePack<bytes>::Vector, bits.v)};
}
template <int bytes>
LPO_ALWAYS_INLINE WidePack<bytes> int_to_float(WideBits<bytes> value) {
  return {__builtin_convertvector(value.v, typename WidePack<bytes>::Vector)};
}
/// As shuffle_lanes of Packs.
template <int... Lane, int bytes>
LPO_ALWAYS_INLINE WidePack<bytes> shuffle_lanes(WidePack<bytes> a, WidePack<bytes> b) {
#if defined(__clang__)
  return {__builtin_shufflevector(a.v, b.v, Lane...)};
#else
  return {__builtin_shuffle(a.v, b.v, typename WideBits<bytes>::Vector{Lane...})};
#endif
}
template <int bytes>
LPO_ALWAYS_INLINE float sum_lanes(const WidePack<bytes>& value) {
  float lane[WidePack<bytes>::lanes];
  value.store(lane);
  for (int step = WidePack<bytes>::lanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
