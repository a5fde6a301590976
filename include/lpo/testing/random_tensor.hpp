// SPDX-License-Identifier: MIT
// Tensors of random numbers for tests: the same values on every host device and in every element type, up to rounding.
#pragma once

#include <cstdint>

#include <lpo/base/philox.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {
namespace testing {

/// mean + deviation * z with independent standard normals z of the Philox field `seed`.
template <class T, class Device, int Rank>
Tensor<T, Rank, Device> random_tensor(const Extents<Rank>& extents, std::uint64_t seed, double deviation = 1,
                                      double mean = 0) {
  Tensor<T, Rank, Device> tensor(extents);
  RandomStream random(seed);
  for (T& value : tensor.span())
    value = static_cast<T>(static_cast<compute_t<T>>(mean + deviation * static_cast<double>(random.normal())));
  return tensor;
}

/// The same values in another element type or on another host device.
template <class T, class Device, class U, int Rank, class From>
Tensor<T, Rank, Device> converted(const Tensor<U, Rank, From>& source) {
  Tensor<T, Rank, Device> tensor(source.extents());
  for (index_t i = 0; i < source.size(); ++i)
    tensor.data()[i] = static_cast<T>(static_cast<compute_t<T>>(static_cast<compute_t<U>>(source.data()[i])));
  return tensor;
}

}  // namespace testing
}  // namespace lpo::inline LPO_ABI
