// SPDX-License-Identifier: MIT
// Data of the backend tests: reproducible noise in any storage type, comparisons, central differences.
#pragma once

#include <doctest/doctest.h>

#include <lpo/base/philox.hpp>
#include <lpo/base/scalar.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace lpo_test {

template <class T>
double as_double(T value) {
  return static_cast<double>(static_cast<lpo::compute_t<T>>(value));
}

/// Uniform numbers in (offset - scale, offset + scale], the same in every run.
template <class T>
std::vector<T> noise(lpo::index_t count, std::uint32_t seed, double scale = 1.0, double offset = 0.0) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto block = lpo::philox4x32_10(static_cast<std::uint32_t>(i), seed, 0, 0, 17, 23);
    const double unit = static_cast<double>(lpo::uniform01(block.v[0])) * 2.0 - 1.0;
    values[i] = static_cast<T>(static_cast<lpo::compute_t<T>>(offset + scale * unit));
  }
  return values;
}

/// How far two implementations with the same storage type may be apart, relative to 1 + |value|.
template <class T>
double tolerance() {
  if (std::is_same_v<T, double>) return 1e-11;
  if (std::is_same_v<T, float>) return 2e-5;
  return std::is_same_v<T, lpo::half> ? 2e-3 : 1.6e-2;
}

/// Largest |a - b| / (1 + |b|); infinity when a number is missing or not finite.
template <class T>
double distance(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  double worst = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(as_double(a[i]) - as_double(b[i])) / (1.0 + std::fabs(as_double(b[i])));
    if (!(d <= worst)) worst = std::isfinite(d) ? d : HUGE_VAL;
  }
  return worst;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Largest relative difference between `gradient` and central differences of `loss` in the elements of `point`.
template <class Loss>
double gradient_error(std::vector<double>& point, const std::vector<double>& gradient, Loss&& loss) {
  double worst = 0.0;
  for (std::size_t i = 0; i < point.size(); ++i) {
    const double step = 1e-5, kept = point[i];
    point[i] = kept + step;
    const double above = loss();
    point[i] = kept - step;
    const double below = loss();
    point[i] = kept;
    const double slope = (above - below) / (2.0 * step);
    worst = std::max(worst, std::fabs(slope - gradient[i]) / (1.0 + std::fabs(slope)));
  }
  return worst;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace lpo_test
