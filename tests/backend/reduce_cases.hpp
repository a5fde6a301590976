// SPDX-License-Identifier: MIT
// Cases of the sums: a device against the reference.
#pragma once

#include <lpo/backend/reference/reduce.hpp>

#include <backend/on_device.hpp>
#include <backend/parity.hpp>

namespace reduce_cases {

using namespace lpo_test;
using namespace parity;

template <class T>
struct Sums {
  std::vector<T> rows, columns, more;
  double squares = 0;
};

template <class Device, class T>
Sums<T> run(index_t rows, index_t width, int threads) {
  auto context = test_context<Device>(threads);
  const auto x = on_device<Device>(random_values<T>(rows * width, 1));
  auto row_sums = on_device<Device>(random_values<T>(rows, 2)), columns = on_device<Device>(random_values<T>(width, 3));
  auto more = on_device<Device>(random_values<T>(width, 4));
  using lpo::kernel::Reduce;
  Reduce<Device>::row_sums(context, rows, width, x.data(), row_sums.data());
  Reduce<Device>::column_sums(context, rows, width, x.data(), columns.data(), false);
  Reduce<Device>::column_sums(context, rows, width, x.data(), more.data(), true);
  const double squares = Reduce<Device>::sum_of_squares(context, rows * width, x.data());
  return Sums<T>{to_host(row_sums), to_host(columns), to_host(more), squares};
}

/// Both runs of a device give the same bits, close to the reference's numbers.
template <class Device, class T>
void compare_sums() {
  const index_t shapes[][2] = {{0, 3},   {3, 0},    {1, 1},     {7, 5},      {5, 33},
                               {40, 64}, {33, 200}, {3000, 96}, {1, 100001}, {70001, 3}};
  for (const auto& s : shapes) {
    CAPTURE(s[0]);
    CAPTURE(s[1]);
    const auto expected = run<lpo::Reference, T>(s[0], s[1], 1);
    const auto one = run<Device, T>(s[0], s[1], 1);
    const auto root = [](index_t n) { return std::sqrt(static_cast<double>(n) + 1.0); };
    CHECK(difference(one.rows, expected.rows, root(s[1])) < tolerance<T>(s[1]));
    CHECK(difference(one.columns, expected.columns, root(s[0])) < tolerance<T>(s[0]));
    CHECK(difference(one.more, expected.more, root(s[0])) < tolerance<T>(s[0]));
    CHECK(one.squares == doctest::Approx(expected.squares).epsilon(1e-12));
    const auto three = run<Device, T>(s[0], s[1], 3);
    CHECK(same_bits(one.rows, three.rows));
    CHECK(same_bits(one.columns, three.columns));
    CHECK(same_bits(one.more, three.more));
    CHECK(one.squares == three.squares);
  }
}

}  // namespace reduce_cases
