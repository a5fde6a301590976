// SPDX-License-Identifier: MIT
// Tensors of random numbers for tests: the same values on every device and in every element type, up to rounding.
#pragma once

#include <cstdint>
#include <vector>

#include <lpo/base/philox.hpp>
#include <lpo/testing/near.hpp>

namespace lpo::inline LPO_ABI {
namespace testing {

/// mean + deviation * z with independent standard normals z of the Philox field `seed`.
template <class T, class Device, int Rank>
Tensor<T, Rank, Device> random_tensor(const Extents<Rank>& extents, std::uint64_t seed, double deviation = 1,
                                      double mean = 0) {
  std::vector<double> values(static_cast<std::size_t>(extents.size()));
  RandomStream random(seed);
  for (double& value : values) value = mean + deviation * static_cast<double>(random.normal());
  return Tensor<T, Rank, Device>::from(extents, values);
}

/// The same values in another element type or on another device.
template <class T, class Device, class U, int Rank, class From>
Tensor<T, Rank, Device> converted(const Tensor<U, Rank, From>& source) {
  return Tensor<T, Rank, Device>::from(source.extents(), detail::values_of(source.view()));
}

}  // namespace testing
}  // namespace lpo::inline LPO_ABI
