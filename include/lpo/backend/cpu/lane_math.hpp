// SPDX-License-Identifier: MIT
// Arithmetic of the CPU kernels' inner loops: exp and sigmoid for known ranges, maxima, sums over the lanes of a pack.
#pragma once

#include <bit>
#include <cmath>
#include <type_traits>
#include <utility>

#include <lpo/tensor/math.hpp>
#include <lpo/tensor/pack.hpp>

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

/// exp for |x| <= 86: no range check, and the power of two goes straight into the exponent. Error as detail::exp.
LPO_ALWAYS_INLINE Pack exp_within(Pack x) {
  const Pack shifted = x * 1.44269504088896341f + 12582912.0f;
  const Pack n = shifted - 12582912.0f;
  Pack r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Pack p = broadcast_lanes<Pack>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Pack y = p * (r * r) + r + 1.0f;
  return std::bit_cast<Pack>(std::bit_cast<PackBits32>(y) + (std::bit_cast<PackBits32>(shifted) << 23));
}

/// exp for x <= 86, exactly zero below -86, so that no product is subnormal.
LPO_ALWAYS_INLINE Pack exp_or_zero(Pack x) { return select(x < broadcast_lanes<Pack>(-86.0f), Pack{}, exp_within(x)); }
LPO_ALWAYS_INLINE double exp_or_zero(double x) { return x < -86.0 ? 0.0 : std::exp(x); }

/// 1 / x for normal x; under AVX-512 an estimate of 14 bits and one Newton step (1 ulp) instead of a division.
LPO_ALWAYS_INLINE Pack reciprocal(Pack x) {
#if defined(__AVX512F__)
  const Pack estimate = std::bit_cast<Pack>(_mm512_maskz_rcp14_ps(0xffff, std::bit_cast<__m512>(x)));
  return estimate + estimate * (1.0f - x * estimate);
#else
  return 1.0f / x;
#endif
}

/// 1 / (1 + e^-x)
LPO_ALWAYS_INLINE Pack quick_sigmoid(Pack x) {
  const Pack bounded = larger(smaller(-x, broadcast_lanes<Pack>(80.0f)), broadcast_lanes<Pack>(-80.0f));
  return reciprocal(1.0f + exp_within(bounded));
}
LPO_ALWAYS_INLINE double quick_sigmoid(double x) { return sigmoid(x); }

template <int Step, int... Lane>
LPO_ALWAYS_INLINE Pack rotate_lanes(Pack value, std::integer_sequence<int, Lane...>) {
  return shuffle_lanes<((Lane + Step) % pack_width)...>(value, value);
}

/// Combines all lanes by halves, in registers: combine(combine(lane 0, lane w/2), …), a fixed order.
template <int Step = pack_width / 2, class Combine>
LPO_ALWAYS_INLINE float fold_lanes(Pack value, Combine&& combine) {
  value = combine(value, rotate_lanes<Step>(value, std::make_integer_sequence<int, pack_width>{}));
  if constexpr (Step > 1)
    return fold_lanes<Step / 2>(value, combine);
  else
    return value[0];
}
LPO_ALWAYS_INLINE float lane_sum(Pack value) {
  return fold_lanes(
      value, [](Pack a, Pack b) __attribute__((always_inline)) { return a + b; });
}
LPO_ALWAYS_INLINE double lane_sum(double value) { return value; }
LPO_ALWAYS_INLINE float lane_max(Pack value) {
  return fold_lanes(
      value, [](Pack a, Pack b) __attribute__((always_inline)) { return larger(a, b); });
}
LPO_ALWAYS_INLINE double lane_max(double value) { return value; }

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
