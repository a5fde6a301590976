// SPDX-License-Identifier: MIT
// Arithmetic of the CPU kernels' inner loops: exp and sigmoid for known ranges, maxima, sums over the lanes of a pack.
#pragma once

#include <bit>
#include <cmath>
#include <type_traits>
#include <utility>

#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/tensor/math.hpp>
#include <lpo/tensor/wide_pack.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

// One instruction where a comparison and a blend would be two.
LPO_ALWAYS_INLINE Pack larger(Pack a, Pack b) {
#if defined(__AVX512F__)
  return std::bit_cast<Pack>(_mm512_maskz_max_ps(0xffff, std::bit_cast<__m512>(a), std::bit_cast<__m512>(b)));
#elif defined(__AVX2__)
  return std::bit_cast<Pack>(_mm256_max_ps(std::bit_cast<__m256>(a), std::bit_cast<__m256>(b)));
#else
  return select(a > b, a, b);
#endif
}
LPO_ALWAYS_INLINE Pack smaller(Pack a, Pack b) {
#if defined(__AVX512F__)
  return std::bit_cast<Pack>(_mm512_maskz_min_ps(0xffff, std::bit_cast<__m512>(a), std::bit_cast<__m512>(b)));
#elif defined(__AVX2__)
  return std::bit_cast<Pack>(_mm256_min_ps(std::bit_cast<__m256>(a), std::bit_cast<__m256>(b)));
#else
  return select(a < b, a, b);
#endif
}
LPO_ALWAYS_INLINE double larger(double a, double b) { return a > b ? a : b; }

template <int bytes>
LPO_ALWAYS_INLINE WidePack<bytes> larger(WidePack<bytes> a, WidePack<bytes> b) {
  return {a.v > b.v ? a.v : b.v};
}
template <int bytes>
LPO_ALWAYS_INLINE WidePack<bytes> smaller(WidePack<bytes> a, WidePack<bytes> b) {
  return {a.v < b.v ? a.v : b.v};
}

inline constexpr double log2_of_e = 1.44269504088896340736, log_of_2 = 0.69314718055994530942;

/// 2^r times the power of two whose exponent the last bits of `shifted` count, for |r| <= 0.5; exactly that power at 0.
/// A polynomial of degree 5 (minimax, fitted for this); relative error 1.6e-7.
template <class V>
LPO_ALWAYS_INLINE V exp2_of_parts(V r, V shifted) {
  const V square = r * r;
  const V high = 1.32647272e-3f * r + 9.67151281e-3f, middle = 5.55073374e-2f * r + 0.240222421f;
  const V y = (high * square + middle) * square + (0.693146978f * r + 1.0f);
  return from_bits(to_bits(y) + (to_bits(shifted) << 23));
}

/// 2^x for |x| <= 126: no range check, and the power of two goes straight into the exponent.
template <class V>
LPO_ALWAYS_INLINE V exp2_within(V x) {
  const V shifted = x + 12582912.0f;
  return exp2_of_parts(x - (shifted - 12582912.0f), shifted);
}

/// 2^x for x <= 126; what lies below 2^-100 becomes 2^-100, so that no product of it with ordinary numbers is
/// subnormal.
template <class V>
LPO_ALWAYS_INLINE V exp2_above(V x) {
  return exp2_within(larger(x, broadcast_lanes<V>(-100.0f)));
}
LPO_ALWAYS_INLINE double exp2_above(double x) { return std::exp2(larger(x, -100.0)); }

/// 2^(x - whole) for a whole number within 2^21 and x up to 126 above it, bounded as exp2_above: nothing is subtracted
/// from x before it is rounded.
template <class V>
LPO_ALWAYS_INLINE V exp2_above(V x, float whole) {
  const V bounded = larger(x, V{} + (whole - 100.0f)), magic = V{} + (12582912.0f - whole);
  const V shifted = bounded + magic;
  return exp2_of_parts(bounded - (shifted - magic), shifted);
}
LPO_ALWAYS_INLINE double exp2_above(double x, double whole) { return exp2_above(x - whole); }

/// exp for x <= 86, exactly zero below -86.
template <class V>
LPO_ALWAYS_INLINE V exp_or_zero(V x) {
  const V floor = broadcast_lanes<V>(-86.0f);
  return select(x < floor, V{}, exp2_within(larger(x, floor) * static_cast<float>(log2_of_e)));
}
LPO_ALWAYS_INLINE double exp_or_zero(double x) { return x < -86.0 ? 0.0 : std::exp(x); }

/// 1 / x for normal x; under AVX-512 an estimate of 14 bits and one Newton step (1 ulp) instead of a division.
template <class V>
LPO_ALWAYS_INLINE V reciprocal(V x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Pack>) {
    const Pack estimate = std::bit_cast<Pack>(_mm512_maskz_rcp14_ps(0xffff, std::bit_cast<__m512>(x)));
    return estimate + estimate * (1.0f - x * estimate);
  }
#endif
  return 1.0f / x;
}

/// 1 / (1 + e^-x)
template <class V>
LPO_ALWAYS_INLINE V quick_sigmoid(V x) {
  const V bounded = larger(smaller(x, broadcast_lanes<V>(80.0f)), broadcast_lanes<V>(-80.0f));
  return reciprocal(1.0f + exp2_within(bounded * static_cast<float>(-log2_of_e)));
}
LPO_ALWAYS_INLINE double quick_sigmoid(double x) { return sigmoid(x); }

template <int Step, class V, int... Lane>
LPO_ALWAYS_INLINE V rotate_lanes(V value, std::integer_sequence<int, Lane...>) {
  return shuffle_lanes<((Lane + Step) % static_cast<int>(sizeof...(Lane)))...>(value, value);
}

/// Combines all lanes by halves, in registers: combine(combine(lane 0, lane w/2), …), a fixed order for a width.
template <int Step, class V, class Combine>
LPO_ALWAYS_INLINE float fold_lanes(V value, Combine&& combine) {
  value = combine(value, rotate_lanes<Step>(value, std::make_integer_sequence<int, LaneTraits<V>::width>{}));
  if constexpr (Step > 1)
    return fold_lanes<Step / 2>(value, combine);
  else
    return value[0];
}
template <class V>
LPO_ALWAYS_INLINE float lane_sum(V value) {
  return fold_lanes<LaneTraits<V>::width / 2>(
      value, [](V a, V b) __attribute__((always_inline)) { return a + b; });
}
LPO_ALWAYS_INLINE double lane_sum(double value) { return value; }
template <class V>
LPO_ALWAYS_INLINE float lane_max(V value) {
  return fold_lanes<LaneTraits<V>::width / 2>(
      value, [](V a, V b) __attribute__((always_inline)) { return larger(a, b); });
}
LPO_ALWAYS_INLINE double lane_max(double value) { return value; }

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
