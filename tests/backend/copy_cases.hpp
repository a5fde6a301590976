// SPDX-License-Identifier: MIT
// Cases of the two-dimensional copy: a device against the reference.
#pragma once

#include <lpo/backend/reference/copy.hpp>

#include <backend/on_device.hpp>
#include <backend/parity.hpp>

namespace copy_cases {

using namespace lpo_test;
using namespace parity;

template <class Device, class T>
std::vector<T> run(index_t rows, index_t width, index_t source_row, index_t target_row, bool accumulate, int threads) {
  auto context = test_context<Device>(threads);
  const auto source = on_device<Device>(random_values<T>(rows * source_row, 1));
  auto target = on_device<Device>(random_values<T>(rows * target_row, 2));
  lpo::kernel::CopyRows<Device>::run(context, rows, width, source.data(), source_row, target.data(), target_row,
                                     accumulate);
  return to_host(target);
}

template <class Device, class T>
void compare_copies() {
  const index_t shapes[][4] = {{0, 3, 3, 3},    {3, 0, 1, 1},       {1, 1, 1, 1},         {5, 7, 7, 9},
                               {5, 17, 20, 17}, {300, 40, 40, 104}, {1000, 129, 129, 129}};
  for (const auto& s : shapes)
    for (bool accumulate : {false, true}) {
      CAPTURE(s[0]);
      CAPTURE(s[1]);
      CAPTURE(accumulate);
      const auto expected = run<lpo::Reference, T>(s[0], s[1], s[2], s[3], accumulate, 1);
      const auto one = run<Device, T>(s[0], s[1], s[2], s[3], accumulate, 1);
      CHECK(difference(one, expected, 1.0) <= (accumulate ? unit<T> : 0.0));
      CHECK(same_bits(one, run<Device, T>(s[0], s[1], s[2], s[3], accumulate, 3)));
    }
}

}  // namespace copy_cases
