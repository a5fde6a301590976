// SPDX-License-Identifier: MIT
// Comparing two arrays: the largest difference relative to the largest expected value, with a message that shows it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {
namespace testing {

/// The worst element of a comparison. `error` is max |found - expected| / max(max |expected|, floor); infinite when the
/// extents differ or when only one of two elements is a number.
struct Difference {
  double error = 0;
  index_t index = -1;  ///< row-major position of the worst element
  double found = 0, expected = 0;
  std::string message;
};

namespace detail {

template <class T>
double number(const T& value) {
  return static_cast<double>(static_cast<compute_t<T>>(value));
}

inline std::string digits(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

/// Values of a view in row-major order, in double.
template <class T, int Rank, class Device>
std::vector<double> values_of(const View<T, Rank, Device>& view) {
  std::vector<double> values(static_cast<std::size_t>(view.size()));
  if (values.empty()) return values;
  const auto* data = view.data;
  std::vector<std::remove_const_t<T>> copy;
  if constexpr (!is_host_device<Device>) {
    index_t reach = 1;
    for (int axis = 0; axis < Rank; ++axis) reach += (view.extents[axis] - 1) * view.strides[axis];
    copy.resize(static_cast<std::size_t>(reach));
    DeviceMemory<Device>::copy_to_host(copy.data(), data, copy.size() * sizeof(T));
    data = copy.data();
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    index_t rest = static_cast<index_t>(i), offset = 0;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      offset += rest % view.extents[axis] * view.strides[axis];
      rest /= view.extents[axis];
    }
    values[i] = number(data[offset]);
  }
  return values;
}

}  // namespace detail

/// Compares two arrays of any element types. `floor` keeps the error of arrays that are zero from blowing up.
template <class A, class B>
Difference difference(std::span<const A> found, std::span<const B> expected, double floor = 1e-30) {
  Difference worst;
  if (found.size() != expected.size()) {
    worst.error = std::numeric_limits<double>::infinity();
    worst.message = message("found ", found.size(), " elements, expected ", expected.size());
    return worst;
  }
  double scale = floor, largest = -1;
  for (const B& value : expected)
    if (std::isfinite(detail::number(value))) scale = std::max(scale, std::fabs(detail::number(value)));
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double f = detail::number(found[i]), e = detail::number(expected[i]);
    double distance = std::fabs(f - e);
    if (f == e || (std::isnan(f) && std::isnan(e)))
      distance = 0;
    else if (!std::isfinite(distance))
      distance = std::numeric_limits<double>::infinity();
    if (distance <= largest) continue;
    largest = distance;
    worst.index = static_cast<index_t>(i);
    worst.found = f;
    worst.expected = e;
  }
  worst.error = found.empty() ? 0 : largest / scale;
  worst.message = message("relative error ", detail::digits(worst.error), " at element ", worst.index, ": found ",
                          detail::digits(worst.found), ", expected ", detail::digits(worst.expected));
  return worst;
}

/// Compares two host views with the same extents, strided or not, on any host devices.
template <class A, class B, int Rank, class DeviceA, class DeviceB>
Difference difference(const View<A, Rank, DeviceA>& found, const View<B, Rank, DeviceB>& expected,
                      double floor = 1e-30) {
  Difference worst;
  if (!(found.extents == expected.extents)) {
    worst.error = std::numeric_limits<double>::infinity();
    worst.message = message("found extents ", to_string(found.extents), ", expected ", to_string(expected.extents));
    return worst;
  }
  const auto a = detail::values_of(found), b = detail::values_of(expected);
  return difference(std::span<const double>(a), std::span<const double>(b), floor);
}
template <class A, class B, int Rank, class DeviceA, class DeviceB>
Difference difference(const Tensor<A, Rank, DeviceA>& found, const Tensor<B, Rank, DeviceB>& expected,
                      double floor = 1e-30) {
  return difference(found.view(), expected.view(), floor);
}

/// `difference(…).error`.
template <class Found, class Expected>
double relative_error(const Found& found, const Expected& expected, double floor = 1e-30) {
  return difference(found, expected, floor).error;
}

/// ||found - expected|| / max(||expected||, 1e-3 sqrt(n)) in Euclidean norms: the measure of the golden files.
template <class A, class B>
double norm_error(std::span<const A> found, std::span<const B> expected) {
  if (found.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double square = 0, norm = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double f = detail::number(found[i]), e = detail::number(expected[i]);
    square += (f - e) * (f - e);
    norm += e * e;
  }
  if (found.empty()) return 0;
  return std::sqrt(square) / std::max(std::sqrt(norm), 1e-3 * std::sqrt(static_cast<double>(found.size())));
}

}  // namespace testing
}  // namespace lpo::inline LPO_ABI
