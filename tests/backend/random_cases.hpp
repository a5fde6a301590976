// SPDX-License-Identifier: MIT
// Cases of the Philox normals: the bits of a device are those of the reference.
#pragma once

#include <lpo/backend/reference/random.hpp>

#include <backend/on_device.hpp>
#include <backend/parity.hpp>

namespace random_cases {

using namespace lpo_test;
using namespace parity;

template <class Device, class T>
std::vector<T> run(index_t count, std::uint64_t first, int threads, float mean = 0.25f, float deviation = 2.0f) {
  auto context = test_context<Device>(threads);
  auto x = on_device<Device>(std::vector<T>(static_cast<std::size_t>(count)));
  lpo::kernel::RandomNormal<Device>::fill(context, count, x.data(), mean, deviation, 7, 11, 13, first);
  return to_host(x);
}

template <class Device, class T>
void compare_normals() {
  for (index_t count : {0, 1, 3, 4, 5, 1000, 20001})
    for (std::uint64_t first : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{6}, std::uint64_t{1} << 40}) {
      CAPTURE(count);
      CAPTURE(first);
      const auto expected = run<lpo::Reference, T>(count, first, 1);
      CHECK(same_bits(run<Device, T>(count, first, 1), expected));
      CHECK(same_bits(run<Device, T>(count, first, 3), expected));
    }
}

}  // namespace random_cases
