// SPDX-License-Identifier: MIT
// Helpers of the backend tests: random storage, comparison of two backends' results, the list of storage types.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <lpo/base/philox.hpp>
#include <lpo/tensor/context.hpp>
#include <lpo/tensor/pack.hpp>

namespace parity {

using lpo::index_t;

/// `count` values of unit variance, rounded to T; the same for the same seed.
template <class T>
std::vector<T> random_values(index_t count, std::uint64_t seed) {
  lpo::RandomStream stream(seed);
  std::vector<T> values(static_cast<std::size_t>(std::max<index_t>(count, 1)));
  for (auto& value : values) value = static_cast<T>(stream.normal());
  return values;
}

template <class T>
double as_double(T value) {
  return static_cast<double>(static_cast<lpo::compute_t<T>>(value));
}

/// Distance between neighbouring numbers of the storage type, relative to 1.
template <class T>
inline constexpr double unit = 0;
template <>
inline constexpr double unit<double> = 0x1p-52;
template <>
inline constexpr double unit<float> = 0x1p-23;
template <>
inline constexpr double unit<lpo::bfloat16> = 0x1p-7;
template <>
inline constexpr double unit<lpo::half> = 0x1p-10;

/// Largest |a - b| / (scale + |b|), where `scale` is the size of the terms that were summed. NaN counts as infinite.
template <class T>
double difference(const std::vector<T>& a, const std::vector<T>& b, double scale) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = as_double(a[i]), y = as_double(b[i]);
    const double error = std::fabs(x - y) / (scale + std::fabs(y));
    worst = std::isnan(error) ? HUGE_VAL : std::max(worst, error);
  }
  return worst;
}

/// What sums of `terms` products of unit variance may differ by: rounding of storage once, of float sums per term.
template <class T>
double tolerance(index_t terms) {
  const double sums = unit<lpo::compute_t<T>> * std::sqrt(static_cast<double>(terms) + 1.0);
  return 4.0 * sums + (sizeof(T) == 2 ? unit<T> : 0.0);
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace parity

#define LPO_STORAGE_TYPES float, double, lpo::bfloat16, lpo::half

TYPE_TO_STRING_AS("bfloat16", lpo::bfloat16);
TYPE_TO_STRING_AS("half", lpo::half);
