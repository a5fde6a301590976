// SPDX-License-Identifier: MIT
// bfloat16 and half: every pattern decoded by exact arithmetic, every rounding boundary encoded, specials, round trips.
#include <lpo/base/scalar.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>

namespace {

/// The value of a 16-bit pattern with `mantissa_bits` significand bits, from the definition of IEEE formats.
double decoded(std::uint32_t bits, int mantissa_bits) {
  const int exponent_bits = 15 - mantissa_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const std::uint32_t mantissa = bits & ((1u << mantissa_bits) - 1u);
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double sign = bits & 0x8000u ? -1.0 : 1.0;
  const double fraction = static_cast<double>(mantissa) / static_cast<double>(1 << mantissa_bits);
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias) : sign * std::ldexp(1.0 + fraction, exponent - bias);
}

/// Counts patterns whose decoding is wrong or whose round trip changes them.
template <class T>
int wrong_patterns(int mantissa_bits) {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    T x;
    x.bits = static_cast<std::uint16_t>(bits);
    const double found = static_cast<double>(static_cast<float>(x)), expected = decoded(bits, mantissa_bits);
    if (std::isnan(expected)) {
      wrong += !std::isnan(found) || !std::isnan(static_cast<float>(T(static_cast<float>(x))));
      continue;
    }
    wrong += found != expected || std::signbit(found) != std::signbit(expected);
    wrong += T(static_cast<float>(x)).bits != x.bits;
  }
  return wrong;
}

/// For neighbours a < b of the format: their midpoint rounds to the even one, floats next to the midpoint to the nearer
/// one.
template <class T>
int wrong_roundings(std::uint32_t last_finite) {
  int wrong = 0;
  const auto value = [](std::uint32_t bits) {
    T x;
    x.bits = static_cast<std::uint16_t>(bits);
    return static_cast<double>(static_cast<float>(x));
  };
  for (std::uint32_t bits = 0; bits < last_finite; ++bits)
    for (const float sign : {1.0f, -1.0f}) {
      const auto middle = static_cast<float>((value(bits) + value(bits + 1)) / 2);  // exact: one more bit is enough
      const std::uint32_t mark = sign < 0 ? 0x8000u : 0u;
      const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
      wrong += T(sign * middle).bits != (even | mark);
      wrong += T(sign * std::nextafter(middle, 0.0f)).bits != (bits | mark);
      wrong += T(sign * std::nextafter(middle, std::numeric_limits<float>::infinity())).bits != ((bits + 1) | mark);
    }
  return wrong;
}

}  // namespace

TEST_CASE("all 65536 patterns decode exactly and come back") {
  CHECK(wrong_patterns<lpo::bfloat16>(7) == 0);
  CHECK(wrong_patterns<lpo::half>(10) == 0);
}

TEST_CASE("rounding to nearest, ties to even, at every boundary, subnormals included") {
  CHECK(wrong_roundings<lpo::bfloat16>(0x7f7f) == 0);
  CHECK(wrong_roundings<lpo::half>(0x7bff) == 0);
}

TEST_CASE("overflow, underflow and NaN") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(lpo::half(65504.0f).bits == 0x7bff);
  CHECK(lpo::half(65519.996f).bits == 0x7bff);
  CHECK(lpo::half(65520.0f).bits == 0x7c00);
  CHECK(lpo::half(-1e30f).bits == 0xfc00);
  CHECK(lpo::half(infinity).bits == 0x7c00);
  CHECK(lpo::half(5.9604645e-8f).bits == 1);
  CHECK(lpo::half(2.9802322e-8f).bits == 0);  // half of the smallest: ties to even zero
  CHECK(lpo::half(2.9802326e-8f).bits == 1);
  CHECK(lpo::half(-1e-20f).bits == 0x8000);
  CHECK(lpo::bfloat16(std::numeric_limits<float>::max()).bits == 0x7f80);
  CHECK(lpo::bfloat16(-infinity).bits == 0xff80);
  const float quiet = std::numeric_limits<float>::quiet_NaN();
  const auto sneaky = std::bit_cast<float>(0x7f800001u);  // its upper half alone would read as infinity
  CHECK(std::isnan(static_cast<float>(lpo::bfloat16(quiet))));
  CHECK(std::isnan(static_cast<float>(lpo::bfloat16(sneaky))));
  CHECK(std::isnan(static_cast<float>(lpo::half(sneaky))));
}

TEST_CASE("conversions work at compile time, and compute types are as documented") {
  static_assert(lpo::half(1.0f).bits == 0x3c00);
  static_assert(lpo::bfloat16(1.0f).bits == 0x3f80);
  static_assert(static_cast<float>(lpo::half(-0.333251953125f)) == -0.333251953125f);
  static_assert(std::is_same_v<lpo::compute_t<lpo::half>, float>);
  static_assert(std::is_same_v<lpo::compute_t<lpo::bfloat16>, float>);
  static_assert(std::is_same_v<lpo::compute_t<float>, float>);
  static_assert(std::is_same_v<lpo::compute_t<double>, double>);
  static_assert(lpo::Scalar<lpo::half> && !lpo::Scalar<int>);
  static_assert(sizeof(lpo::half) == 2 && sizeof(lpo::bfloat16) == 2);
}
