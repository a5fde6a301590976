// SPDX-License-Identifier: MIT
// bfloat16 and half: 16-bit storage types. Arithmetic happens in float; these only load and store.
#pragma once

#include <cstdint>
#include <type_traits>

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

// The built-in, because std::bit_cast is no device function.
LPO_HOST_DEVICE constexpr std::uint16_t bfloat16_bits(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // keep NaN quiet
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);                  // nearest even
}

LPO_HOST_DEVICE constexpr std::uint16_t half_bits(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (magnitude < 0x38800000u) {                                                    // subnormal or zero
    if (magnitude < 0x33000000u) return static_cast<std::uint16_t>(sign);
    const std::uint32_t shift = 126u - (magnitude >> 23);
    const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const std::uint32_t kept = mantissa >> shift;
    const std::uint32_t rest = mantissa & ((1u << shift) - 1u);
    const std::uint32_t halfway = 1u << (shift - 1u);
    const std::uint32_t up = (rest > halfway || (rest == halfway && (kept & 1u))) ? 1u : 0u;
    return static_cast<std::uint16_t>(sign | (kept + up));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

LPO_HOST_DEVICE constexpr float half_value(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  std::uint32_t exponent = (bits >> 10) & 0x1fu;
  std::uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1fu) return __builtin_bit_cast(float, sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    if (mantissa == 0) return __builtin_bit_cast(float, sign);
    exponent = 1;
    while ((mantissa & 0x400u) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= 0x3ffu;
  }
  return __builtin_bit_cast(float, sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

}  // namespace detail

/// Brain float: 8 exponent bits, 8 significant bits. Rounds to nearest even.
struct bfloat16 {
  std::uint16_t bits;

  bfloat16() = default;
  LPO_HOST_DEVICE constexpr explicit bfloat16(float value) : bits(detail::bfloat16_bits(value)) {}
  LPO_HOST_DEVICE constexpr explicit operator float() const {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
  }
};

/// IEEE binary16. Rounds to nearest even; overflow becomes infinity.
struct half {
  std::uint16_t bits;

  half() = default;
  LPO_HOST_DEVICE constexpr explicit half(float value) : bits(detail::half_bits(value)) {}
  LPO_HOST_DEVICE constexpr explicit operator float() const { return detail::half_value(bits); }
};

namespace detail {
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
}  // namespace detail

/// The type arithmetic on a storage type `T` uses: double for double, float for float, bfloat16 and half.
template <class T>
using compute_t = typename detail::ComputeOf<T>::type;

template <class T>
concept Scalar = requires { sizeof(T); } && (std::is_same_v<T, float> || std::is_same_v<T, double> ||
                                             std::is_same_v<T, bfloat16> || std::is_same_v<T, half>);

}  // namespace lpo::inline LPO_ABI
