// SPDX-License-Identifier: MIT
// Elementary functions written once for scalars and packs: exp, log, tanh, erf and what activations build on them.
#pragma once

#include <cmath>

#include <lpo/tensor/wide_pack.hpp>

LPO_HOST_DEVICE_TEMPLATES_BEGIN
namespace lpo::inline LPO_ABI {
namespace detail {

// Float versions use polynomials, so that results are the same for packs, tails and every libm; double goes to libm (it
// serves gradient checks, where speed is no concern). Relative error of exp: about 1e-7 over its whole range.

template <class V>
LPO_HOST_DEVICE LPO_ALWAYS_INLINE V exp(V x) {
  if constexpr (std::is_same_v<V, double>) {
    return std::exp(x);
  } else if constexpr (!LPO_HOST_PASS) {
    return ::expf(x);  // the device has an instruction for most of it
  } else {
    x = select(x > broadcast_lanes<V>(89.0f), broadcast_lanes<V>(89.0f), x);
    x = select(x < broadcast_lanes<V>(-104.0f), broadcast_lanes<V>(-104.0f), x);
    const V shifted = x * 1.44269504088896341f + 12582912.0f;  // the magic number rounds to the nearest integer
    const V n = shifted - 12582912.0f;
    V r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    V p = broadcast_lanes<V>(1.9875691500e-4f);  // Cephes expf
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const V y = p * (r * r) + r + 1.0f;
    const auto exponent = to_bits(shifted) - 0x4b400000;
    const auto low = exponent >> 1;  // two factors: the result may be subnormal or overflow to infinity
    return y * from_bits((low + 127) << 23) * from_bits((exponent - low + 127) << 23);
  }
}

template <class V>
LPO_HOST_DEVICE LPO_ALWAYS_INLINE V log(V x) {
  if constexpr (std::is_same_v<V, double>) {
    return std::log(x);
  } else {
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)); Cephes logf. Subnormals are scaled up first.
    const auto tiny = x < broadcast_lanes<V>(1.17549435e-38f);
    const V scaled = select(tiny, x * 8388608.0f, x);
    const auto bits = to_bits(scaled);
    V e = int_to_float((bits >> 23) - 126) - select(tiny, broadcast_lanes<V>(23.0f), broadcast_lanes<V>(0.0f));
    V m = from_bits((bits & 0x007fffff) | 0x3f000000);
    const auto small = m < broadcast_lanes<V>(0.707106781186547524f);
    e = select(small, e - 1.0f, e);
    m = select(small, m + m, m) - 1.0f;
    V p = broadcast_lanes<V>(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const V square = m * m;
    V y = p * m * square + e * -2.12194440e-4f - 0.5f * square;
    V value = m + y + e * 0.693359375f;
    const V infinity = broadcast_lanes<V>(HUGE_VALF);
    value = select(x == infinity, infinity, value);
    value = select(x == broadcast_lanes<V>(0.0f), -infinity, value);
    const auto valid = x >= broadcast_lanes<V>(0.0f);
    return select(valid, value, broadcast_lanes<V>(NAN));
  }
}

template <class V>
LPO_HOST_DEVICE LPO_ALWAYS_INLINE V absolute(V x) {
  return select(x < V{}, -x, x);
}

template <class V>
LPO_HOST_DEVICE LPO_ALWAYS_INLINE V sigmoid(V x) {
#if !LPO_HOST_PASS
  // Two approximations of the device, of 2 and 1 units in the last place, in 4 instructions: expf and a division take 13. Rounding
  // the exponent adds at most 1.6e-8, or of small results (x < 0) 1.3 |x| 2^-24 of themselves.
  if constexpr (std::is_same_v<V, float>) {
    float power, result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504088896341f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
    return result;
  }
#endif
  return 1.0f / (1.0f + exp(-x));
}

template <class V>
LPO_HOST_DEVICE LPO_ALWAYS_INLINE V tanh(V x) {
  if constexpr (std::is_same_v<V, double>) {
    return std::tanh(x);
  } else {
    // Near zero the exponential form cancels: an odd polynomial there (Cephes tanhf).
    const V square = x * x;
    V p = broadcast_lanes<V>(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    const V near = p * square * x + x;
    const V far = 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
    return select(absolute(x) < broadcast_lanes<V>(0.625f), near, far);
  }
}

template <class V>
LPO_HOST_DEVICE LPO_ALWAYS_INLINE V erf(V x) {
  if constexpr (std::is_same_v<V, double>) {
    return std::erf(x);
  } else {
    // Odd minimax rational function on [-4, 4] (the coefficients that XLA and Eigen use); erf(4) is 1 in float.
    x = select(x > broadcast_lanes<V>(4.0f), broadcast_lanes<V>(4.0f), x);
    x = select(x < broadcast_lanes<V>(-4.0f), broadcast_lanes<V>(-4.0f), x);
    const V square = x * x;
    V p = broadcast_lanes<V>(-2.72614225801306e-10f);
    p = p * square + 2.77068142495902e-08f;
    p = p * square - 2.10102402082508e-06f;
    p = p * square - 5.69250639462346e-05f;
    p = p * square - 7.34990630326855e-04f;
    p = p * square - 2.95459980854025e-03f;
    p = p * square - 1.60960333262415e-02f;
    V q = broadcast_lanes<V>(-1.45660718464996e-05f);
    q = q * square - 2.13374055278905e-04f;
    q = q * square - 1.68282697438203e-03f;
    q = q * square - 7.37332916720468e-03f;
    q = q * square - 1.42647390514189e-02f;
    return x * p / q;
  }
}

/// ln(1 + e^x) without overflow, to full relative accuracy also where it is tiny: ln(1 + u) = u ln(w) / (w - 1) with the
/// rounded w = 1 + u, whose error cancels (Goldberg 1991, theorem 4).
template <class V>
LPO_HOST_DEVICE LPO_ALWAYS_INLINE V softplus(V x) {
  const V one = broadcast_lanes<V>(1);
  const V u = exp(-absolute(x));
  const V w = one + u;
  const V rest = w - one;
  const auto lost = rest == V{};
  return select(x > V{}, x, V{}) + select(lost, u, log(w) * u / select(lost, one, rest));
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
LPO_HOST_DEVICE_TEMPLATES_END
